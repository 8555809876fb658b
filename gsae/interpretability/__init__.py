"""Interpretability (section 4.3): dashboards of latents, the blinded rating page and its
statistics, automated scores.

`collect` reads text once and keeps what is shown of each latent as plain data; `dashboards` turns
it into HTML; `scores` computes automated scores, which are not in the paper. `pairs` draws and
blinds matched pairs of latents, `page` writes the page that people rate on, and `statistics`
computes the paper's tests from their ratings.
"""
