"""Section 4.3: whether people find gated latents as interpretable."""

from gsae.evidence.verdict import Verdict


def human_ratings(scale: str) -> Verdict:
    """Section 4.3, from the ratings on record."""
    from gsae.interpretability import published_study, score_tables

    return published_study.judged(score_tables.folder(scale))
