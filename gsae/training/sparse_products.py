"""The closed forms' products only where latents are on, which soon is one place in hundreds.

Of the seven dense products of a gated step only the encoder's is left; decodes and gradients of
weights are sums of gathered rows (`embedding_bag`), and what comes back through the decoder is one
inner product an open place. Rows are gathered in the dtype of the products and summed in float32,
as a dense product does. Every sum has a fixed order.
"""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.functional import embedding_bag

from gsae.training.dense_products import Dense, column

LEAST_M = 1024  # narrower SAEs are always dense
# of the places: at most so many open ones are gathered; other devices were not measured
SHARE = {"cpu": 1 / 16}
CHUNK = 8192  # places at a time where nothing is compiled, as their rows are then written out


def opened(pre: Tensor, bias: Tensor) -> Tensor:
    """Where `pre + bias > 0`: above the largest number of pre's dtype that is not, which is
    compared as it is stored.
    """
    bar = (-bias).to(pre.dtype)
    below = bar.nextafter(torch.full_like(bar, -torch.inf))
    return pre > column(torch.where(bar.float() > -bias, below, bar))


def inner(W: Tensor, rows: Tensor, latent: Tensor, sample: Tensor) -> Tensor:
    return (W[latent].float() * rows[sample].float()).sum(-1, keepdim=True)


def chooser(fuse: Callable, M: int) -> Callable[[Tensor, Tensor], Dense] | None:
    """What `closed_form` takes as `choose`: `Open` while at most `SHARE` of the places are open,
    else `Dense`. None for an SAE of fewer than `LEAST_M` latents.

    It looks at each batch anew, so that the choice follows from weights and data alone: a resumed
    run repeats it. The count is read from the device, which `nonzero` would wait for in any case.
    """
    dense = Dense(fuse)

    def choose(pre: Tensor, bias: Tensor) -> Dense:
        if pre.device.type not in SHARE:
            return dense
        is_open = opened(pre, bias)
        few = is_open.count_nonzero() <= SHARE[pre.device.type] * pre.numel()
        return Open(is_open, fuse) if few else dense

    return choose if M >= LEAST_M else None


def places(is_open: Tensor) -> Tensor:
    """Indices of what is true, flat and rising; on CPUs eight entries are passed over at a time."""
    flat = is_open.flatten()
    if flat.is_cuda or len(flat) % 8:
        return flat.nonzero().squeeze(1)
    words = flat.view(torch.int64).nonzero().squeeze(1)
    word, byte = flat.view(-1, 8)[words].nonzero().unbind(1)
    return words[word] * 8 + byte


class Open(Dense):
    """One SAE's products over the places that are open in `is_open: (M, batch)`; codes are
    `(places, 1)`, by latent.
    """

    def __init__(self, is_open: Tensor, fuse: Callable):
        M, batch = is_open.shape
        self.flat = places(is_open)
        self.latent, self.sample = self.flat // batch, self.flat % batch
        self.order = self.sample.argsort(stable=True)  # by sample
        # Where the places of each latent begin, and, by sample, those of each sample.
        latents = torch.arange(M, device=is_open.device)
        samples = torch.arange(batch, device=is_open.device)
        self.of_latent = torch.searchsorted(self.flat, latents * batch)
        self.of_sample = torch.searchsorted(self.sample[self.order], samples)
        self.inner = fuse(inner) if len(self.flat) > 1 else inner
        if self.inner is not inner:  # one compilation for any number of places
            for index in (self.latent, self.sample):
                torch._dynamo.mark_dynamic(index, 0)

    @staticmethod
    def fuse(part: Callable) -> Callable:
        # Few numbers, and another count of them at each step: not worth a compilation.
        return part

    def pick(self, pre: Tensor) -> Tensor:
        return pre.flatten()[self.flat].unsqueeze(1)

    def spread(self, *vectors: Tensor) -> tuple[Tensor, ...]:
        return tuple(v[self.latent] for v in vectors)

    def sums(self, *vectors: Tensor) -> tuple[Tensor, ...]:
        every = torch.arange(len(self.flat), device=self.flat.device)
        return embedding_bag(every, torch.stack(vectors, 1), self.of_latent, mode="sum").unbind(1)

    def encode(self, W: Tensor, u: Tensor) -> Tensor:
        return self.back(W.mT.contiguous(), u)

    def decode(self, f: Tensor, W_dec: Tensor) -> Tensor:
        latent, weights = self.latent[self.order], f.squeeze(1)[self.order]
        return embedding_bag(latent, W_dec, self.of_sample, mode="sum", per_sample_weights=weights)

    def back(self, W_dec: Tensor, error: Tensor) -> Tensor:
        if self.inner is not inner:
            return self.inner(W_dec, error, self.latent, self.sample)
        chunks = zip(self.latent.split(CHUNK), self.sample.split(CHUNK), strict=True)
        parts = [inner(W_dec, error, latent, sample) for latent, sample in chunks]
        return torch.cat(parts)

    def to_decoder(self, f: Tensor, error: Tensor) -> Tensor:
        weights = f.squeeze(1)
        return embedding_bag(
            self.sample, error, self.of_latent, mode="sum", per_sample_weights=weights
        )

    def to_encoder(self, u: Tensor, grad_pre: Tensor) -> Tensor:
        return self.to_decoder(grad_pre, u).mT
