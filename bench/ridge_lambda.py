"""RanPAC's choice of λ and solve: one factorisation of the smaller matrix compared with one dense solve per λ.

    python bench/ridge_lambda.py [--features 10000] [--examples 4000] [--classes 100] [--threads 2]

Both use the same head with the same statistics, the same 17 candidates and the same held-out rows. Both end with
the solve for the chosen λ, and both predict the same 2,000 further examples. The dense solves take minutes at the
default size: 17 Cholesky factorisations of a matrix with 10,000 rows.
"""

from __future__ import annotations

import argparse
import time
from unittest import mock

import torch

from everlearn.heads import ridge


def dense_errors(h, y, held_h, held_y, lambdas):
    """The held-out error of the solution of (HᵀH + λI) W = HᵀY for each λ; infinite if there is no Cholesky factor."""
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
    centres = torch.randn(args.classes, args.width)

    def examples(n: int) -> tuple[torch.Tensor, torch.Tensor]:
        labels = torch.arange(n) % args.classes
        return torch.nn.functional.normalize(centres[labels] + 2 * torch.randn(n, args.width), dim=1), labels

    head = ridge.Ridge(args.width, projection=args.features, select="current")
    head.grow(args.classes)
    features, labels = examples(args.examples)
    head.add(features, labels)
    asked = examples(2_000)[0]

    seconds, chosen, answers = {}, {}, {}
    ways = {"one factorisation": ridge.held_out_errors, "17 dense solves": dense_errors}
    for name, errors_of in ways.items():
        with mock.patch.object(ridge, "held_out_errors", errors_of):
            start = time.perf_counter()
            chosen[name] = head.choose_lambda(features, labels)
            head.solve()
            seconds[name] = time.perf_counter() - start
        answers[name] = head(asked).argmax(1)
        print(f"{name:>18}: {seconds[name]:7.2f} s, λ = {chosen[name]:g}", flush=True)
    fast, dense = ways
    print(f"same λ: {chosen[fast] == chosen[dense]}; "
          f"same predictions: {int((answers[fast] == answers[dense]).sum())} of {len(asked)}")  # fmt: skip
    print(f"ratio: {seconds[dense] / seconds[fast]:.1f}")


if __name__ == "__main__":
    main()
