"""Other libraries, in an environment of their own (`make peers`): a process for each, which stays
alive and answers one timed round a request, so that its rounds come in turn with ours. The server
half imports nothing of gsae."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from unittest.mock import MagicMock

import torch

from benchmarks.cases import Batches, Case, Loop, many_shapes, read_data

ROOT = Path(__file__).resolve().parents[1]
PYTHON = ROOT / os.environ.get("PEERS", ".bench") / "bin" / "python"
# "default" is what the library's documentation does when nothing is said about speed. "outside" are
# settings that the library does not offer on this device, made around it: they give it the best
# chance.
SETTINGS = {
    "sae-lens": {
        "default": {},
        "compiled": {"compile": True},
        "autocast": {"autocast": True},
        "autocast, compiled": {"autocast": True, "compile": True},
        "bf16 weights, compiled": {"dtype": "bfloat16", "compile": True},
    },
    "dictionary-learning": {
        "default": {},
        "bf16 option": {"dtype": "bfloat16"},
        "outside: autocast": {"dtype": "bfloat16", "autocast": True},
        "outside: autocast, compiled": {"dtype": "bfloat16", "autocast": True, "compile": True},
    },
}
FOREVER = 10**9  # steps and samples of a run that no schedule may end


class PeerError(RuntimeError):
    """The peers' process cannot do what it was asked; the message is its own."""


def sae_lens(case: Case, device: str, autocast=False, compile=False, dtype="float32") -> Callable:
    """One step of SAELens' trainer, as its coordinator of several SAEs drives it; `compile` as its
    runner does.
    """
    import sae_lens as sl
    from sae_lens.config import SAETrainerConfig
    from sae_lens.training.sae_trainer import SAETrainer

    SAE, Config = {
        "gated": (sl.GatedTrainingSAE, sl.GatedTrainingSAEConfig),
        "baseline": (sl.StandardTrainingSAE, sl.StandardTrainingSAEConfig),
    }[case.arch]
    settings = SAETrainerConfig(
        total_training_samples=FOREVER,
        train_batch_size_samples=case.batch,
        device=device,
        autocast=autocast,
        lr_end=3e-5,
    )  # its runner sets lr_end; with a constant rate it is not used
    sae = SAE(Config(d_in=case.n, d_sae=case.M, dtype=dtype, device=device, l1_coefficient=0.1))
    trainer = SAETrainer(settings, sae, data_provider=iter(()))
    if compile:
        sae.training_forward_pass = torch.compile(sae.training_forward_pass)

    def step(x):
        trainer.maybe_reset_sparsity()
        trainer.step(x.to(sae.dtype))  # its activation store holds that dtype
        trainer.n_training_steps += 1

    return step


def dictionary_learning(
    case: Case, device: str, autocast=False, compile=False, dtype="float32"
) -> Callable:
    """One step of dictionary_learning's trainer, as its `trainSAE` drives it.

    Its bf16 option casts the batch and turns autocast on, the latter on GPUs only; `autocast` does
    so on CPUs too.
    """
    # Importing nnsight, which its buffer of activations needs and its trainers do not, breaks
    # torch.compile.
    sys.modules.setdefault("nnsight", MagicMock())
    from dictionary_learning.trainers.gdm import GatedSAETrainer
    from dictionary_learning.trainers.standard import StandardTrainer

    trainer = {"gated": GatedSAETrainer, "baseline": StandardTrainer}[case.arch](
        steps=FOREVER,
        activation_dim=case.n,
        dict_size=case.M,
        layer=0,
        lm_name="none",
        device=device,
        # a warm-up would compile anew in each of its steps
        **({"sparsity_warmup_steps": None} if compile else {}),
    )
    if compile:
        trainer.loss = torch.compile(trainer.loss)
    kind, dtype, done = torch.device(device).type, getattr(torch, dtype), 0
    on = autocast or (kind == "cuda" and dtype is torch.bfloat16)

    def step(x):
        nonlocal done
        x = x.to(dtype)
        with torch.autocast(kind, torch.bfloat16) if on else nullcontext():
            trainer.update(done, x)
        done += 1

    return step


MAKERS = {"sae-lens": sae_lens, "dictionary-learning": dictionary_learning}


def prepare(case: Case, rows, seconds: float, settle: int, device: str) -> Loop:
    """`case.K` trainers in a loop over the same batches: no peer has another way."""
    if case.setting not in SETTINGS.get(case.library, {}):
        raise PeerError(f"no setting {case.setting!r} of {case.library!r} is known")
    options = SETTINGS[case.library][case.setting]
    steps = [MAKERS[case.library](case, device, **options) for _ in range(case.K)]
    batches = Batches(rows, case.batch, device)

    def step():
        x = batches()
        for one in steps:
            one(x)

    return Loop(step, seconds, settle, device)


def versions() -> dict[str, str]:
    installed = {"python": sys.version.split()[0]}
    for name in ("torch", "sae-lens", "dictionary-learning", "transformer-lens"):
        try:
            installed[name] = version(name)
        except PackageNotFoundError:
            continue
    return installed


def serve(answers) -> None:
    """Answer requests from standard input, one json a line, until it closes."""
    torch.manual_seed(0)
    many_shapes()
    data, loops = {}, {}
    for line in sys.stdin:
        request = json.loads(line)
        try:
            match request.pop("do"):
                case "start":
                    torch.set_num_threads(request["threads"])
                    data, answer = read_data(Path(request["data"])), versions()
                case "prepare":
                    one = Case(**request.pop("case"))
                    loops[one.name] = prepare(one, data[one.n], **request)
                    answer = {"steps_a_round": loops[one.name].count}
                case "round":
                    answer = loops[request["name"]].round()
        except (
            Exception
        ) as error:  # of a foreign library: the other cases go on, and the record says what failed
            answer = {
                "error": (
                    f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
                )[:300]
            }
        print(json.dumps(answer), file=answers, flush=True)


class Peers:
    """The client: starts the process and asks it."""

    def __init__(self, python: Path, data: Path, threads: int):
        environment = {**os.environ, "WANDB_MODE": "disabled", "OMP_NUM_THREADS": str(threads)}
        pipes = dict(stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.process = subprocess.Popen(
            [python, "-m", "benchmarks.peers"], cwd=ROOT, env=environment, **pipes
        )
        self.versions = self.ask(do="start", data=str(data), threads=threads)

    def ask(self, **request):
        """The answer to one request. Raises PeerError where it is an error, or the process has
        ended.
        """
        try:
            self.process.stdin.write(json.dumps(request) + "\n")
            self.process.stdin.flush()
            line = self.process.stdout.readline()
        except BrokenPipeError:
            line = ""
        if not line:
            raise PeerError(
                f"the peers' process ended with code {self.process.wait()}; its message is above"
            )
        answer = json.loads(line)
        if isinstance(answer, dict) and "error" in answer:
            raise PeerError(answer["error"])
        return answer

    def close(self) -> None:
        self.process.stdin.close()
        self.process.wait(timeout=60)


class Peer:
    """One case of a peer, on our side of the pipe."""

    def __init__(self, case: Case, peers: Peers, seconds: float, settle: int, device: str = "cpu"):
        self.case, self.peers = case, peers
        request = dict(seconds=seconds, settle=settle, device=device)
        self.facts = peers.ask(do="prepare", case=asdict(case), **request)

    @property
    def name(self) -> str:
        return self.case.name

    def round(self) -> float:
        return self.peers.ask(do="round", name=self.name)

    def about(self) -> dict:
        return self.facts


if __name__ == "__main__":
    pipe = os.fdopen(os.dup(1), "w")  # what a library prints must not get between the answers
    os.dup2(2, 1)
    serve(pipe)
