"""Our training step, through the public interface that `gsae.training.fit` uses."""

from benchmarks.cases import Batches, Case, Loop, many_shapes

SETTINGS = {"bf16": "bfloat16", "fp32": "float32"}


class Ours:
    """A stack of `case.K` SAEs with lambdas of the range that a sweep has, no schedule, no resampling."""

    def __init__(self, case: Case, rows, seconds: float, settle: int, device: str = "cpu"):
        from gsae.stack import Plan, Stack

        many_shapes()
        lams = tuple(0.05 * 8 ** (k / max(1, case.K - 1)) for k in range(case.K)) if case.K > 1 else (0.1,)
        plan = Plan(
            case.arch, case.n, case.M, lams, steps=1_000_000, batch=case.batch, lr=1e-3, lam_warmup=0.0, lr_warmup=0,
            lr_decay=0.0, resample=(), dtype=SETTINGS[case.setting], device=device,
        )  # fmt: skip
        self.case, self.stack, self.batches = case, Stack(plan), Batches(rows, case.batch, device)
        self.loop = Loop(self.step, seconds, settle, device)

    @property
    def name(self) -> str:
        return self.case.name

    def step(self) -> None:
        self.terms = self.stack.train_step(self.batches())

    def round(self) -> float:
        return self.loop.round()

    def about(self) -> dict:
        """What the speed may depend on."""
        return {"l0": round(float(self.terms["l0"].mean()), 1), "steps_a_round": self.loop.count}
