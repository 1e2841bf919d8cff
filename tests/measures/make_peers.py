"""Values of the measures by other people's code, for `test_peers.py`; writes `peers.json` beside itself.

    python tests/measures/make_peers.py CLONES

It runs with rsatoolbox, scikit-learn, torch, loguru and einops installed and repsim not installed. The directory
CLONES holds these sources, each at its commit:

    github.com/ahwillia/netrep             0186b8a  LinearMetric
    github.com/google/svcca                1f3fbf1  cca_core, on principal components for SVCCA; the equation of PWCCA
    github.com/mklabunde/resi              24ab9e5  jaccard_similarity, representational_similarity_analysis, CCA's copy
    github.com/minyoungg/platonic-rep      dcd76ba  AlignmentMetrics.mutual_knn, cknna
    pip install rsatoolbox                 0.3.2    calc_rdm, compare

Features are `inputs` of numpy's default_rng(seed), which has kept its numbers since numpy 1.17.
"""

import json
import sys
import types
from pathlib import Path

import numpy as np

CASES = {"plain": (60, 8, 5, 0), "more on one side": (90, 4, 12, 1), "close": (150, 10, 10, 2)}
WIDE = {"wide": (40, 70, 55, 3)}


def inputs(n, p, q, seed):
    """Features (n, p) and (n, q) that share six latent variables, with a mean, and with scales that differ."""
    rng = np.random.default_rng(seed)
    shared = rng.normal(size=(n, 6))
    x = shared @ rng.normal(size=(6, p)) + 0.7 * rng.normal(size=(n, p))
    y = shared @ rng.normal(size=(6, q)) + 0.7 * rng.normal(size=(n, q))
    return x * np.logspace(0, -1, p) + rng.normal(size=p), y * np.logspace(0, -1, q) + rng.normal(size=q)


def values(clones):
    sys.modules["torchaudio"] = types.ModuleType("torchaudio")  # platonic-rep's edit distance needs it
    sys.modules["torchaudio.functional"] = types.ModuleType("torchaudio.functional")
    for name in ("netrep", "svcca", "resi", "platonic-rep"):
        sys.path.insert(0, str(clones / name))
    import rsatoolbox
    import torch
    from cca_core import get_cca_similarity
    from metrics import AlignmentMetrics
    from netrep.metrics import LinearMetric
    from repsim.measures.nearest_neighbor import jaccard_similarity

    from repsim.measures.rsa import representational_similarity_analysis

    def principal(x):
        """The principal components that hold 99 % of the variance, as SVCCA's tutorial takes them."""
        u, s, _ = np.linalg.svd(x - x.mean(0), full_matrices=False)
        kept = int(np.argmax(np.cumsum(s**2) / np.sum(s**2) >= 0.99)) + 1
        return u[:, :kept] * s[:kept]

    def google(x, y):
        return get_cca_similarity(x.T, y.T, epsilon=0.0, verbose=False)

    def pwcca(x, y):
        """PWCCA of features as they are, with Google's canonical directions and weights by equation 3 of the paper."""
        result = google(x, y)
        centred = x - x.mean(0)
        count = min(x.shape[1], y.shape[1])
        variates = (result["coef_x"] @ result["invsqrt_xx"] @ centred.T)[:count]
        weights = np.abs(variates @ centred).sum(1)
        return float(np.sum(weights * result["cca_coef1"][:count]) / weights.sum())

    def rdm(x, method):
        return rsatoolbox.rdm.calc_rdm(rsatoolbox.data.Dataset(x), method=method)

    def rsa(x, y, comparison, method="correlation"):
        a, b = rdm(x, method), rdm(y, method)
        if method == "euclidean":  # rsatoolbox squares distances, and divides by the number of features
            a, b = (rsatoolbox.rdm.RDMs(np.sqrt(squared.dissimilarities)) for squared in (a, b))
        return rsatoolbox.rdm.compare(a, b, method=comparison).item()

    def unit(x):
        """Rows of length 1000, beside which the epsilon of 1e-6 in the denominator of the peer's CKNNA is nothing."""
        return torch.from_numpy(1000 * x / np.linalg.norm(x, axis=1, keepdims=True))

    peers = {}
    for name, case in (CASES | WIDE).items():
        x, y = inputs(*case)
        a, b = unit(x), unit(y)
        peers[name] = {
            "procrustes": np.cos(LinearMetric(alpha=1.0).fit_score(x, y)),
            "rsa-pearson": rsa(x, y, "corr"),
            "rsa-spearman": rsa(x, y, "spearman"),
            "rsa-spearman euclidean": rsa(x, y, "spearman", "euclidean"),
            "rsa-spearman resi": representational_similarity_analysis(x, y, "nd"),
            "mutual-knn": AlignmentMetrics.mutual_knn(a, b, topk=10),
            "cknna": (AlignmentMetrics.cknna(a, b, topk=10) + AlignmentMetrics.cknna(b, a, topk=10)) / 2,
            "jaccard": jaccard_similarity(x, y, "nd", n_jobs=1),
        }
        if name in CASES:
            padded = max(x.shape[1], y.shape[1])
            peers[name] |= {
                "cca": np.mean(google(x, y)["cca_coef1"]),
                "svcca": np.mean(google(principal(x), principal(y))["cca_coef1"]),
                "pwcca": pwcca(x, y),
                "pwcca turned": pwcca(y, x),
            }
            if x.shape[1] == y.shape[1] == padded:  # netrep pads with zeros, which cannot be whitened
                angle = LinearMetric(alpha=0.0).fit_score(x, y)
                peers[name]["cca netrep"] = np.cos(angle)
        peers[name] = {measure: float(value) for measure, value in peers[name].items()}
    return peers


if __name__ == "__main__":
    table = json.dumps(values(Path(sys.argv[1])), indent=1)
    (Path(__file__).parent / "peers.json").write_text(table + "\n")
    print(table)
