"""Collected latents as `gsae.interpretability.latents` writes them, made up, and consistent enough
to be loaded.
"""

import json
import random

SENTENCES = """Returns the list of tags that are attached to the resource , or an empty list if there are none .
If the file does not exist , an OSError is raised with the name of the file and the reason .
The waiter polls the service every 15 seconds until a successful state is reached .
Each array must have the same number of rows ; columns are matched by their labels .
A timeout of None means that the call blocks until the connection is closed by the peer .
Draws samples from a normal distribution whose mean and standard deviation are given .""".splitlines()


def example(rng, peak, q=None, block=0):
    tokens = [" " + word for word in rng.choice(SENTENCES).split()]
    at = rng.randrange(2, len(tokens))
    acts = [round(peak * rng.random() * 0.8, 3) if rng.random() < 0.25 else 0 for _ in tokens]
    acts[at] = peak
    return {"block": block, "pos": at + 1, "at": at, "tokens": tokens, "acts": acts} | (
        {} if q is None else {"q": q}
    )


def latent(number, seed=0, dead=False):
    rng = random.Random(f"{seed} {number}")
    if dead:
        top, sample, counts = [], [], []
    else:
        top = [example(rng, round(3 - 0.2 * i, 2), block=i) for i in range(8)]
        sample = [
            example(rng, round(2.9 * q + 0.1, 2), q, i)
            for i, q in enumerate((1, 0.9, 0.8, 0.6, 0.5, 0.3, 0.1, 0))
        ]
        counts = [rng.randrange(1, 60) for _ in range(48)]
    return {
        "latent": number,
        "density": sum(counts) / 100_000,
        "max": 0 if dead else 3.0,
        "histogram": {"width": 0.0625, "counts": counts},
        "top": top,
        "sample": sample,
        "logits": {
            "raised": [[" Returns", 2.41], [" returns", 2.2]],
            "lowered": [[" none", -1.9], ["</script>", -1]],
        },
        "similar": [[number + 1, 0.41]],
    }


def collected(
    run, arm="gated", l0=50.0, lm="lm-a", site="attn_z", layer=8, latents=12, dead=0, **about
):
    """A file's content: `latents` of them, the first `dead` never on."""
    provenance = {
        "run": run,
        "lm": lm,
        "site": site,
        "layer": layer,
        "n": 576,
        "M": 3456,
        "scale": 1.0,
        "tokens": 100_000,
        "context": 128,
        "corpus": "c0ffee",
        "arm": arm,
        "l0": l0,
        **about,
    }
    rows = [latent(17 * i + 3, run, i < dead) for i in range(latents)]
    return {"schema": 1, "provenance": provenance, "latents": rows, "background": []}


def write(folder, **sae):
    """Write one file of collected latents; returns its path."""
    path = folder / f"{sae['run']}.json"
    path.write_text(json.dumps(collected(**sae)))
    return path


def small(folder, latents=12, arms=("gated", "baseline")):
    """Files of two places with a matched SAE of each arm."""
    paths = []
    for site, layer in (("attn_z", 8), ("resid_post", 20)):
        for n, arm in enumerate(arms):
            run = f"9ab3cdef021{len(paths):x}"
            paths.append(
                write(
                    folder, run=run, arm=arm, l0=48.0 + n, site=site, layer=layer, latents=latents
                )
            )
    return paths
