"""Join what pairs link."""

import numpy as np
import numpy.typing as npt

Indices = npt.NDArray[np.int64]


def connected_groups(nodes: int, pairs: Indices) -> Indices:
    """Return the connected component of each node, int64[nodes], numbered in order of first nodes.

    `pairs` [n, 2] are the linked nodes.
    """
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    graph = coo_array((np.ones(len(pairs), bool), (pairs[:, 0], pairs[:, 1])), shape=(nodes, nodes))
    _, found = connected_components(graph, directed=False)
    _, leaders, component = np.unique(found, return_index=True, return_inverse=True)
    return np.argsort(np.argsort(leaders))[component].astype(np.int64)
