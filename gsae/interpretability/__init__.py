"""Section 4.3: dashboards of latents, blinded ratings and their statistics, automated scores.

`latents.collect` reads text once and keeps what is shown of each latent as plain data; `dashboards`
turns it into HTML; `automated_scores` computes scores, which are not in the paper. `matched_pairs`
says which SAEs are compared, `drawing` draws and blinds their latents, `rating_page` writes the
page that people rate on, and `rating_analysis` computes the paper's tests from their ratings.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "compared_saes": ["SAE", "StudyError"],
        "dashboards": ["fragment"],
        "drawing": ["draw"],
        "latents": ["collect"],
        "matched_pairs": ["match"],
        "published_study": ["judged"],
        "rating_analysis": ["analyse"],
    },
)
