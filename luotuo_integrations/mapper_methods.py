"""The methods that fit a query mapper: each gives A and b of h(x) = x + A x + b.

X are N query vectors, Y the vectors of all passages, both of length 1; query n is answered by passage ``positives[n]``.

- ridge: A, b minimise sum ||h(x) - y||² + λ N ||A||²: pulled towards the answer, and towards identity.
- procrustes: I + A is the orthogonal matrix R that minimises sum ||R x - y||² (Schönemann, 1966), b = 0.
- discriminant: directions that vary for other reasons than the answer are marked down (after Fisher, 1936).
- contrastive: A = U V of low rank and b minimise the cross entropy of the answer among all passages, softmax of
  cosine / temperature, plus a pull towards identity.
"""

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812  (torch's own convention)
from numpy.typing import NDArray

from luotuo_integrations.texts import Vectors

STEPS = 100
LEARNING_RATE = 0.005
PULL = 1e-3  # weight of ||U||² + ||V||² + ||b||² of the contrastive fit
MOST_QUERIES = 512  # of a step of the contrastive fit
MOST_CANDIDATES = 2_048  # passages that they are contrasted with

Moves = tuple[Vectors, Vectors]  # A (D, D) and b (D,)


def ridge(queries: Vectors, passages: Vectors, positives: NDArray[np.int64], penalty: float) -> Moves:
    """Closed form: (A | b) of the least squares from x to y - x, penalised by ``penalty`` N ||A||²."""
    wanted = passages[positives] - queries  # (N, D)
    means = queries.mean(0), wanted.mean(0)
    centred = queries - means[0]
    covariance = centred.T @ centred / len(queries)  # (D, D)
    # In units of the vectors' own spread, so that one penalty suits every model.
    penalties = penalty * np.trace(covariance) / len(covariance) * np.eye(len(covariance), dtype=np.float32)
    matrix = np.linalg.solve(covariance + penalties, centred.T @ (wanted - means[1]) / len(queries)).T
    return matrix.astype(np.float32), (means[1] - matrix @ means[0]).astype(np.float32)


def procrustes(queries: Vectors, passages: Vectors, positives: NDArray[np.int64]) -> Moves:
    """The rotation, or reflection, that takes queries nearest to their passages."""
    left, _, right = np.linalg.svd(passages[positives].T @ queries)
    size = queries.shape[1]
    return (left @ right - np.eye(size)).astype(np.float32), np.zeros(size, np.float32)


def discriminant(queries: Vectors, passages: Vectors, positives: NDArray[np.int64], shrinkage: float) -> Moves:
    """Closed form: h(x) = W (x - mean of the queries), W the shrunk inverse of C, the sum of three covariances.

    These are of the differences between queries and their answers, of the queries, and of the passages. With
    C = U diag(w) U^T, W = U diag((1 + s) / (w / mean w + s)) U^T, where s is the shrinkage: a direction of average
    variance keeps its length. The first covariance is that within the classes of Fisher's linear discriminant, each
    question with its answer one class. The other two take out what all texts of the collection have in common, for
    which no answer need be known; that is why a few pairs are enough.
    """
    mean = queries.mean(0)
    parts = (queries - passages[positives], queries, passages)
    covariance = sum(np.cov(one.T.astype(np.float64)) for one in parts)
    values, turn = np.linalg.eigh(covariance)
    kept = (1 + shrinkage) / (values / max(values.mean(), 1e-12) + shrinkage)
    weighted = (turn * kept) @ turn.T  # (D, D)
    return (weighted - np.eye(len(mean))).astype(np.float32), (-weighted @ mean).astype(np.float32)


def contrastive(
    queries: Vectors, passages: Vectors, positives: NDArray[np.int64], rank: int, *, steps: int = STEPS, seed: int = 0
) -> Moves:
    """Low-rank A and b by Adam on the cross entropy over the passages.

    The temperature is half the spread of a query's cosines, so that one setting suits models whose cosines lie in a
    narrow range and others. Of many queries or passages each step draws some, the answers of its queries among them.
    """
    generator = torch.Generator().manual_seed(seed)
    size = queries.shape[1]
    x, y, targets = torch.from_numpy(queries), torch.from_numpy(passages), torch.from_numpy(positives)
    sample = x[torch.randperm(len(x), generator=generator)[:512]]
    temperature = max(0.5 * float((sample @ y.T).std(dim=1).mean()), 1e-3)
    up = torch.zeros(size, rank, requires_grad=True)
    down = (torch.randn(rank, size, generator=generator) / size**0.5).requires_grad_()
    bias = torch.zeros(size, requires_grad=True)
    optimizer = torch.optim.Adam([up, down, bias], lr=LEARNING_RATE)
    for _ in range(steps):
        rows, candidates, places = _drawn(targets, len(y), generator)
        mapped = F.normalize(x[rows] + x[rows] @ down.T @ up.T + bias, dim=1)
        loss = F.cross_entropy(mapped @ y[candidates].T / temperature, places)
        loss = loss + PULL * (up.square().sum() + down.square().sum() + bias.square().sum())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    matrix: Vectors = (up @ down).detach().numpy()
    return matrix, bias.detach().numpy()


def _drawn(
    targets: torch.Tensor, passages: int, generator: torch.Generator
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Rows of a step, the passages that they choose among, and where among these their answers stand."""
    if len(targets) <= MOST_QUERIES and passages <= MOST_CANDIDATES:
        return torch.arange(len(targets)), torch.arange(passages), targets
    rows = torch.randperm(len(targets), generator=generator)[:MOST_QUERIES]
    others = torch.randperm(passages, generator=generator)[: MOST_CANDIDATES - len(rows)]
    candidates, inverse = torch.unique(torch.cat([targets[rows], others]), return_inverse=True)
    return rows, candidates, inverse[: len(rows)]
