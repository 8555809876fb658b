"""What this project is: the paper that it replicates, its repository, its version."""

PAPER = "arXiv:2404.16014v2"
REPO = "https://github.com/gsae-book/gsae"
__version__ = "0.1.0"
