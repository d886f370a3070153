"""Choosing λ of a ridge head: one factorisation of the smaller matrix against one dense solve per candidate.

    python bench/ridge_lambda.py [--features 10000] [--examples 4000] [--classes 100] [--threads 2]

Both choose among the same 17 candidates on the same held-out rows. The dense way takes minutes at the
default size: 17 Cholesky factorisations of a matrix of 10,000 rows.
"""

from __future__ import annotations

import argparse
import time

import torch

from everlearn.heads.ridge import LAMBDAS, held_out_errors


def dense_errors(h, y, held_h, held_y, lambdas):
    """The same errors by solving (HᵀH + λI) W = HᵀY for each λ; infinite where that has no Cholesky factor."""
    gram, targets, errors = h.T @ h, h.T @ y, []
    for strength in lambdas:
        shifted = gram.clone()
        shifted.diagonal().add_(strength)
        factor, failed = torch.linalg.cholesky_ex(shifted)
        error = (held_h @ torch.cholesky_solve(targets, factor) - held_y).square().mean()
        errors.append(error if not failed else torch.tensor(torch.inf, dtype=torch.float64))
    return torch.stack(errors)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in (("features", 10_000), ("examples", 4_000), ("classes", 100), ("width", 384), ("threads", 2)):
        parser.add_argument(f"--{name}", type=int, default=default)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    labels = torch.arange(args.examples) % args.classes
    centres = torch.randn(args.classes, args.width, dtype=torch.float64)
    noise = torch.randn(args.examples, args.width, dtype=torch.float64)
    features = torch.nn.functional.normalize(centres[labels] + 2 * noise, dim=1)
    h = torch.relu(features @ torch.randn(args.width, args.features, dtype=torch.float64))
    y = torch.nn.functional.one_hot(labels).double()
    held = args.examples // 5
    data = h[held:], y[held:], h[:held], y[:held]

    seconds, best, scores = {}, {}, {}
    for name, errors_of in (("one factorisation", held_out_errors), ("17 dense solves", dense_errors)):
        start = time.perf_counter()
        errors = errors_of(*data, LAMBDAS)
        seconds[name] = time.perf_counter() - start
        best[name], scores[name] = LAMBDAS[int(errors.argmin())], errors
        print(f"{name:>18}: {seconds[name]:7.2f} s, λ = {best[name]:g}, held-out error {errors.min():.6f}", flush=True)
    fast, dense = best
    solid = torch.isfinite(scores[dense]) & (torch.tensor(LAMBDAS) >= 1e-2)  # below, the dense way has lost its digits
    difference = ((scores[fast] - scores[dense]).abs() / scores[dense])[solid].max()
    print(f"same λ: {best[fast] == best[dense]}; largest relative difference of an error at λ ≥ 0.01: {difference:.1e}")
    print(f"ratio: {seconds[dense] / seconds[fast]:.1f}")


if __name__ == "__main__":
    main()
