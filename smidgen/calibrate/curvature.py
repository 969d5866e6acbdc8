"""Kronecker-factored curvature at every site from a few hundred unlabelled inputs.

    Δloss ≈ ½ tr(G ΔW A ΔWᵀ)      A: mean over samples of the SUM over positions of x xᵀ
                                  G: mean over samples and positions of g gᵀ

(K-FAC, arXiv:1503.05671; convolutions arXiv:1602.01407.) The loss is KL(original ‖ changed), whose curvature at the
original is the Fisher matrix, so g are gradients for labels drawn from the network's own answers: no labels needed. A
confident network's Fisher vanishes, so the answers are tempered: labels come from softmax(z / T). Networks that are not
classifiers (several outputs, maps, regression) use the squared error of every output over its variance instead.

A from few samples says of most directions that they cost nothing, and every method would put its error there. So what
lies off its diagonal is shrunk by the share that is noise (Schäfer and Strimmer 2005, doi:10.2202/1544-6115.1175):

    A ← (1 − s) A + s diag(A),    s = Σ_{i≠j} Var(A_ij) / Σ_{i≠j} A_ij²,    Var from the samples' own A_k

MobileNetV2's classifier (1,280 inputs seen 240 times, s = 0.5) was priced at a twelfth of its true loss without it.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from smidgen.calibrate.answers import LEAST_VARIANCE, as_logits, is_classifier, outputs_of
from smidgen.calibrate.columns import choose_positions, input_rows, output_rows
from smidgen.errors import LoadError
from smidgen.forms import Dense, macs
from smidgen.site import Curvature, Moment, Site

TYPICAL_INPUTS = 1000  # how many there are is not known before the last has been seen


@dataclass(frozen=True)
class Settings:
    """Settings of `collect`.

    Args:
        widest: largest n for which A is kept whole (n² float32); wider layers keep ``rows`` sketch rows.
        rows: rows of the count sketch of a wide layer.
        positions: most output positions of a convolution used from one sample.
        temperature: T as a share of the logits' standard deviation (never below 1). One is best of 0.25, 0.5, 1 and 2
            on LeNet (KL 0.0035 against 0.0041 at 0.5, 9x smaller).
        draws: labels drawn for each input at most; each costs one backward pass.
        draw_macs: multiplications spent on them at most: small networks can afford all draws, large ones take one or
            two, which they need less since they are wide.
        shrink: least share of G that is replaced by its mean diagonal. The share is out / (out + gradients seen), since
            G estimated from fewer gradients than outputs says of most directions that they cost nothing: SqueezeNet's
            classifier (1,000 outputs, 240 inputs) was priced at a ninth of its true loss.
        shrink_inputs: shrink what lies off A's diagonal by the share that is noise.
    """

    widest: int = 4608
    rows: int = 1536
    positions: int = 64
    temperature: float = 1.0
    draws: int = 8
    draw_macs: float = 1e12
    shrink: float = 0.1
    shrink_inputs: bool = True


class _Sums:
    """Running sums of one site."""

    def __init__(self, site: Site, settings: Settings, device: str) -> None:
        g = site.geometry
        self.site, self.samples, self.count = site, 0, 0
        groups, n = g.groups, g.in_channels // g.groups if g.kind == "conv_transpose" else g.columns
        self.whole = n <= settings.widest
        height = n if self.whole else settings.rows
        self.a = torch.zeros(groups, height, n, device=device)
        self.mean = torch.zeros(groups, n, device=device, dtype=torch.float64)
        self.filled = 0
        self.spread = _Spread(groups)
        out = g.out_channels // groups
        self.g = torch.zeros(groups, out, out, device=device)
        self.g_count, self.draws = 0, 1

    def add_inputs(self, x: Tensor, settings: Settings, generator: torch.Generator) -> None:
        geometry = self.site.geometry
        picked = choose_positions(geometry, settings.positions, generator)
        picked = None if geometry.kind == "conv_transpose" else picked
        rows = input_rows(x.detach(), geometry, picked)
        scale = 1.0 if picked is None else geometry.positions / len(picked)
        self.samples += x.shape[0]
        self.count += rows.shape[1]
        self.mean += rows.sum(1, dtype=torch.float64)
        self.spread.add(rows.unflatten(1, (x.shape[0], -1)), scale)
        if self.whole:
            self.a += scale * (rows.mT @ rows)
        else:
            self._sketch(rows * scale**0.5, generator)

    def _sketch(self, rows: Tensor, generator: torch.Generator) -> None:
        """Count sketch (arXiv:1411.4357): each row goes to one bucket with a random sign, so E[BᵀB] = XᵀX.

        The first rows fill the buckets in turn; until they are full the sketch is exact.
        """
        height, k = self.a.shape[1], rows.shape[1]
        bucket = torch.randint(height, (k,), generator=generator)
        fresh = max(0, min(k, height - self.filled))
        bucket[:fresh] = torch.arange(self.filled, self.filled + fresh)
        self.filled += fresh
        sign = torch.randint(2, (k,), generator=generator).to(rows) * 2 - 1
        self.a.index_add_(1, bucket.to(rows.device), rows * sign.to(rows.device)[:, None])

    def add_gradients(self, gradient: Tensor) -> None:
        rows = output_rows(gradient.detach(), self.site.geometry)
        self.g += rows.mT @ rows
        self.g_count += rows.shape[1]

    def result(self, settings: Settings) -> Curvature:
        mean = (self.mean / max(self.count, 1)).float()
        count = max(self.samples, 1)
        a = self.a / count if self.whole else self.a / count**0.5
        if settings.shrink_inputs:
            inputs = replace(_without_noise(a, self.spread, count, whole=self.whole), mean=mean)
        else:
            inputs = Moment(matrix=a, mean=mean) if self.whole else Moment(rows=a, mean=mean)
        out, seen = self.g.shape[1], self.samples * self.draws
        g = _shrunk(self.g / max(self.g_count, 1), max(settings.shrink, out / (out + seen)))
        return Curvature(inputs, Moment(matrix=g), "calibration", self.samples)


class _Spread:
    """Sums of ‖A_k‖² over the samples k, of all its entries and of its diagonal, a group at a time."""

    def __init__(self, groups: int) -> None:
        self.all = torch.zeros(groups, dtype=torch.float64)
        self.diagonal = torch.zeros(groups, dtype=torch.float64)

    def add(self, rows: Float[Tensor, "groups samples positions n"], scale: float) -> None:
        """Add samples; A_k = scale · XᵀX over a sample's positions."""
        positions, n = rows.shape[2:]
        gram = rows @ rows.mT if positions < n else rows.mT @ rows  # of one norm: the smaller will do
        self.all += scale**2 * gram.square().sum((1, 2, 3), dtype=torch.float64).cpu()
        self.diagonal += scale**2 * rows.square().sum(2).square().sum((1, 2), dtype=torch.float64).cpu()

    def noise(
        self, matrix: Float[Tensor, "groups m m"], samples: int, diagonal: Float[Tensor, "groups n"] | None = None
    ) -> Float[Tensor, " groups"]:
        """s of each group.

        Args:
            matrix: A, or any matrix of the same norm.
            samples: that A is the mean of.
            diagonal: of A, where the matrix is another one.
        """
        own = torch.diagonal(matrix, dim1=1, dim2=2) if diagonal is None else diagonal
        whole = matrix.double().square().sum((1, 2)).cpu()
        on = own.double().square().sum(1).cpu()
        off = (whole - on).clamp_min(torch.finfo(torch.float64).tiny)
        if samples == 1:
            return torch.ones_like(own[:, 0])
        variance = ((self.all - self.diagonal) / samples - (whole - on)) / (samples - 1)
        return (variance / off).clamp(0.0, 1.0).to(matrix)


def _without_noise(a: Tensor, spread: _Spread, samples: int, *, whole: bool) -> Moment:
    """A, or rows of it, with what lies off its diagonal shrunk."""
    if not whole:
        own = a.square().sum(1)
        share = spread.noise(a @ a.mT, samples, own)
        return Moment(rows=a * (1 - share[:, None, None]).sqrt(), diagonal=share[:, None] * own, noise=share)
    own = torch.diagonal(a, dim1=1, dim2=2).clone()
    share = spread.noise(a, samples)
    a = a * (1 - share)[:, None, None]
    torch.diagonal(a, dim1=1, dim2=2).copy_(own)
    return Moment(matrix=a, noise=share)


def _shrunk(g: Tensor, share: float) -> Tensor:
    """G with its diagonal pulled toward the mean: rows the sample never excites must not become free."""
    diagonal = torch.diagonal(g, dim1=1, dim2=2)
    mean = diagonal.mean(1, keepdim=True).clamp_min(torch.finfo(g.dtype).tiny)
    return (1 - share) * g + share * torch.diag_embed(mean.expand_as(diagonal))


def collect(
    model: nn.Module,
    sites: list[Site],
    batches: Iterable[np.ndarray],
    *,
    settings: Settings = Settings(),
    device: str = "cpu",
    seed: int = 0,
) -> dict[str, Curvature]:
    """Curvature of every site that may be touched.

    Args:
        model: the network, in evaluation mode, on ``device``.
        sites: its sites.
        batches: unlabelled inputs, arrays ``[n, …]``.
        settings: memory limits, temperature, shrinkage.
        device: where the network lies.
        seed: of the drawn labels and positions.

    Returns:
        `Curvature` by site name; in nats for classifiers.

    >>> from smidgen.model.sites import find_sites
    >>> model = nn.Sequential(nn.Linear(4, 3)).eval()
    >>> x = np.random.default_rng(0).normal(size=(8, 4)).astype("f4")
    >>> collect(model, find_sites(model, torch.zeros(1, 4)), [x])["0"].inputs.matrix.shape
    torch.Size([1, 4, 4])
    """
    generator = torch.Generator().manual_seed(seed)
    sums = {site.name: _Sums(site, settings, device) for site in sites if site.refusal is None}
    if not sums:
        return {}
    handles = [_watch(model.get_submodule(name), sums[name], settings, generator) for name in sums]
    draws = _draws(sites, settings)
    for one in sums.values():
        one.draws = draws
    frozen = [p for p in model.parameters() if p.requires_grad]
    for parameter in frozen:
        parameter.requires_grad_(False)
    try:
        with torch.enable_grad():
            for batch in batches:
                x = torch.from_numpy(batch).to(device)
                outputs = model(x)
                for left in reversed(range(draws)):
                    sampled_loss(outputs, settings.temperature, generator).backward(retain_graph=left > 0)
    finally:
        for handle in handles:
            handle.remove()
        for parameter in frozen:
            parameter.requires_grad_(True)
    return {name: sums.pop(name).result(settings) for name in list(sums)}  # each sum goes when its mean is there


def _draws(sites: list[Site], settings: Settings) -> int:
    """Labels drawn for each input; a backward pass costs twice a forward one."""
    each = 2 * sum(macs(Dense(site.weight), site.geometry) for site in sites)
    return int(np.clip(settings.draw_macs / max(1, each * TYPICAL_INPUTS), 1, settings.draws))


def _watch(module: nn.Module, sums: _Sums, settings: Settings, generator: torch.Generator) -> Any:
    def hook(_module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> Tensor:
        sums.add_inputs(args[0], settings, generator)
        output = output if output.requires_grad else output.detach().requires_grad_()
        output.register_hook(sums.add_gradients)
        # A copy: a later in-place activation must not touch the tensor whose gradient is asked.
        return output.clone()

    return module.register_forward_hook(hook)


def sampled_loss(outputs: Any, temperature: float, generator: torch.Generator) -> Tensor:
    """The loss whose gradients make up G, summed over the batch.

    Args:
        outputs: what the network returned: a tensor, or several.
        temperature: share of the logits' standard deviation.
        generator: of the drawn labels.
    """
    several = [output for output in outputs_of(outputs) if output.requires_grad]  # class numbers have no gradient
    if not several:
        raise LoadError(
            "calibrate: no output has a gradient (torch.no_grad in forward, or only whole numbers come out); "
            "return the scores, or leave the data out"
        )
    if is_classifier(several):
        return _classifier_loss(as_logits(several[0]), temperature, generator)
    total = torch.zeros((), device=several[0].device)
    for output in several:
        noise = torch.randn(output.shape, generator=generator).to(output)
        spread = output.detach().var().clamp_min(LEAST_VARIANCE) * output[0].numel()
        total = total + (output * noise).sum() / spread.sqrt()
    return total


def _classifier_loss(logits: Tensor, temperature: float, generator: torch.Generator) -> Tensor:
    rows = logits.detach()
    t = max(1.0, temperature * float(rows.std()))
    drawn = torch.multinomial((rows / t).softmax(1).cpu(), 1, generator=generator).to(logits.device)
    # Not divided by T: the gradient keeps the size it has at T = 1, only the draw is tempered.
    return t * -(logits / t).log_softmax(1).gather(1, drawn).sum()
