"""Routes of a model, and kinds of routing draws, in configs; free of torch."""

from __future__ import annotations

from typing import Literal

Routes = tuple[tuple[int, int], ...]
# How samples draw the tokens that they keep, see `t2i.models.routing.draw_keep`.
RoutingDraw = Literal["fixed", "bernoulli"]


def resolve_routes(routes: Routes, num_layers: int) -> Routes:
    """Replace negative layers (-1 is the last) and check that routes are in order and disjoint.

    Raises:
        ValueError: a layer that does not exist, an empty route, or routes that overlap.
    """
    resolved: list[tuple[int, int]] = []
    for start, end in routes:
        if not (-num_layers <= start < num_layers and -num_layers <= end < num_layers):
            raise ValueError(
                f"route [{start}, {end}]: layers must be in [-{num_layers}, {num_layers - 1}]"
            )
        first, last = start % num_layers, end % num_layers
        if first > last:
            raise ValueError(f"route [{start}, {end}] is empty: layer {first} is after {last}")
        if resolved and first <= resolved[-1][1]:
            raise ValueError(
                f"route [{start}, {end}] must start after layer {resolved[-1][1]}, where the "
                "route before it ends; give routes in order, without overlap"
            )
        resolved.append((first, last))
    return tuple(resolved)


def first_routed(routes: Routes, num_layers: int) -> int:
    """The first layer that tokens can skip; `num_layers` when there are no (resolved) routes."""
    return routes[0][0] if routes else num_layers
