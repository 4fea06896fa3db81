"""Routes of a model and kinds of routing draws in configs, and how many tokens run; free of torch."""

from __future__ import annotations

import math
from typing import Literal

Routes = tuple[tuple[int, int], ...]
# How samples draw the tokens that they keep, see `t2i.models.routing.draw_keep`.
RoutingDraw = Literal["fixed", "bernoulli"]
# What becomes of tokens where a route ends, see `t2i.models.fusion`.
AfterRoute = Literal["put_back", "fuse"]


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


def count_draws(routes: Routes, draw_per_route: bool) -> int:
    """How many draws of tokens a forward pass needs.

    Raises:
        ValueError: a draw per route of a model that has not several.
    """
    if draw_per_route and len(routes) < 2:
        raise ValueError(
            f"draw_per_route has no effect with {len(routes)} route(s); set it to false, or give "
            "several routes, such as [[2, 10], [12, 30]]"
        )
    return len(routes) if draw_per_route else 1


def check_fusion(after_route: AfterRoute, routes: Routes) -> None:
    """Refuse a fusion where there is not one place for it.

    Raises:
        ValueError: fused tokens of a model with no route or several.
    """
    if after_route == "fuse" and len(routes) != 1:
        raise ValueError(
            f"after_route fuse joins the states before and after one route, there are {len(routes)}; "
            "give one, such as [[2, -3]], or set after_route to put_back"
        )


def check_internal_head(internal_after: int | None, routes: Routes, num_layers: int) -> None:
    """Refuse an internal head where not all tokens have a state.

    Raises:
        ValueError: it is not before the (resolved) routes, or has no block after it.
    """
    if internal_after is None:
        return
    last = min(first_routed(routes, num_layers), num_layers - 1) - 1
    if internal_after > last:
        place = "before the route, where all tokens are" if routes else "before the last block"
        raise ValueError(
            f"internal_after {internal_after}: the internal head must lie {place}: 0 to {last}"
        )


def first_routed(routes: Routes, num_layers: int) -> int:
    """The first layer that tokens can skip; `num_layers` when there are no (resolved) routes."""
    return routes[0][0] if routes else num_layers


def num_kept(num_tokens: int, gamma: float) -> int:
    """T - floor(gamma T): how many tokens run the routed layers at sparsity gamma.

    Raises:
        ValueError: gamma outside [0, 1).
    """
    if not 0 <= gamma < 1:
        raise ValueError(f"gamma must be in [0, 1), got {gamma}; 0 is dense, 0.5 skips half")
    # the rounding undoes products such as 0.29 * 100 = 28.999999999999996
    return num_tokens - math.floor(round(gamma * num_tokens, 6))
