"""The one attack loop.

Several attacks, radii and restarts run as lanes of one batch: the network sees (B·L) images at a
time, while start, step and projection are written for one image and mapped over examples and
lanes by `jax.vmap`. Lanes lie inside the batch axis, (B, L, H, W, C), so that a batch sharded over
devices stays where it is. Lanes are sorted by their number of steps, and those that have finished
leave the batch: nobody pays for steps that he does not take.

The gradient is that of a summed per-example loss with respect to pixels alone; whatever
parameters `logits_fn` closes over get none.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from medadv_jax.attacks.losses import LOSSES
from medadv_jax.attacks.norms import BALLS, Ball, l1_normalize
from medadv_jax.attacks.spec import AttackSpec, LogitsFn

LOOPS = ("fori_loop", "unrolled")


class _Lane(NamedTuple):
    """The numbers of an attack that may differ between lanes; each () float32, or (L,) stacked."""

    epsilon: jax.Array
    step_size: jax.Array
    decay: jax.Array
    keep_best: jax.Array  # bool
    early_stop: jax.Array  # bool


class _State(NamedTuple):
    """Where an example stands in a lane."""

    point: jax.Array  # (H, W, C) the current adversarial image
    momentum: jax.Array  # (H, W, C) the accumulated gradient
    best: jax.Array  # (H, W, C) the strongest point visited
    success: jax.Array  # () bool: did the strongest point fool the network?
    loss: jax.Array  # () float32: its loss, signed so that the attack raises it


class _Score(NamedTuple):
    success: jax.Array
    loss: jax.Array


class Plan(NamedTuple):
    """What is known of a call before any image: the lanes, longest first, and what they share."""

    lanes: list[AttackSpec]
    restarts: list[int]  # number of the random start of each lane
    order: list[int]  # position of each lane in the caller's order
    ball: Ball
    loss: str
    targeted: bool
    tracked: bool  # does any lane return its strongest point?
    can_stop: bool


# The parts of a call, in their order. `attack_sweep.py` uses some of them alone.


def plan_lanes(attacks: Sequence[AttackSpec]) -> Plan:
    """Returns a lane for each attack and restart; ValueError if attacks cannot share a batch."""
    kinds = {(attack.norm, attack.loss, attack.targeted) for attack in attacks}
    if len(kinds) > 1:
        raise ValueError(f"attacks of one call share norm, loss and direction; got {sorted(kinds)}")
    norm, loss, targeted = kinds.pop()
    lanes = [attack for attack in attacks for _ in range(attack.num_restarts)]
    restarts = [restart for attack in attacks for restart in range(attack.num_restarts)]
    order = sorted(range(len(lanes)), key=lambda lane: -lanes[lane].num_steps)
    return Plan(
        lanes=[lanes[lane] for lane in order],
        restarts=[restarts[lane] for lane in order],
        order=order,
        ball=BALLS[norm],
        loss=loss,
        targeted=targeted,
        tracked=any(lane.keep_best or lane.num_restarts > 1 for lane in lanes),
        can_stop=any(lane.early_stop for lane in lanes),
    )


def begin(
    plan: Plan, images: jax.Array, labels: jax.Array, key: jax.Array | None
) -> tuple[_State, jax.Array, jax.Array]:
    """Returns the first state, and images (B, L, H, W, C) and labels (B, L) in the plan's order."""
    order = jnp.array(plan.order)
    images, labels = images[:, order], labels[:, order]
    points = _starts(plan.lanes, plan.restarts, plan.ball, images, key)
    return _initial_state(points), images, labels


def run_segments(
    plan: Plan,
    step: Callable[..., _State],
    state: _State,
    images: jax.Array,
    labels: jax.Array,
    loop: str,
) -> _State:
    """Runs all lanes to the smallest number of steps, the rest to the next smallest, and so on."""
    lanes, finished, done = plan.lanes, [], 0
    while lanes:
        active, until = len(lanes), lanes[-1].num_steps
        arguments = (_stack(lanes), images[:, :active], labels[:, :active])
        state = _repeat(lambda state, a=arguments: step(state, *a), until - done, state, loop)
        staying = sum(lane.num_steps > until for lane in lanes)
        finished.append(jax.tree.map(lambda x, s=staying: x[:, s:], state))
        state = jax.tree.map(lambda x, s=staying: x[:, :s], state)
        lanes, done = lanes[:staying], until
    return jax.tree.map(lambda *x: jnp.concatenate(x, axis=1), *reversed(finished))


def end(
    plan: Plan, score_fn: Callable[..., Any], state: _State, labels: jax.Array
) -> tuple[jax.Array, _Score]:
    """Returns the results (B, L, H, W, C) and their scores (B, L), in the caller's order."""
    adversarial, score = _finish(score_fn, plan.tracked, state, _stack(plan.lanes), labels)
    restore = jnp.array([plan.order.index(lane) for lane in range(len(plan.order))])
    adversarial, score = jax.tree.map(lambda x: x[:, restore], (adversarial, score))
    return jax.lax.stop_gradient(adversarial), score


def strongest(attacks: Sequence[AttackSpec], adversarial: jax.Array, score: _Score) -> jax.Array:
    """Returns (L, B, H, W, C): of each attack the strongest restart of each example."""
    results, first = [], 0
    for attack in attacks:
        stop = first + attack.num_restarts
        results.append(_strongest_restart(adversarial, score, first, stop))
        first = stop
    return jnp.stack(results)


def _repeat(step: Callable[[_State], _State], times: int, state: _State, loop: str) -> _State:
    """Applies `step` `times` times."""
    if loop not in LOOPS:
        raise ValueError(f"loop={loop!r}: known are {', '.join(LOOPS)}")
    if loop == "fori_loop" and times > 1:
        return jax.lax.fori_loop(0, times, lambda _, state: step(state), state)
    for _ in range(times):
        state = step(state)
    return state


def make_score_fn(
    plan: Plan, logits_fn: LogitsFn, penalty_fn: LogitsFn | None = None
) -> Callable[..., Any]:
    """Returns (points (B, L, H, W, C), labels (B, L)) -> (summed loss, scores (B, L))."""
    loss_fn = LOSSES[plan.loss]

    def score(points: jax.Array, labels: jax.Array) -> tuple[jax.Array, _Score]:
        flat = points.reshape(-1, *points.shape[2:])
        logits = logits_fn(flat).astype(jnp.float32)
        loss = loss_fn(logits, labels.ravel())
        is_label = jnp.argmax(logits, axis=-1) == labels.ravel()
        success, loss = (is_label, -loss) if plan.targeted else (~is_label, loss)
        if penalty_fn is not None:
            loss -= penalty_fn(flat)
        scores = _Score(success.reshape(labels.shape), loss.reshape(labels.shape))
        return jnp.sum(loss), scores

    return score


def make_step(plan: Plan, score_fn: Callable[..., Any]) -> Callable[..., _State]:
    """Returns one step of all lanes: a gradient of the batch, then a move of each example."""
    move = _make_move(plan.ball, plan.tracked, plan.can_stop)
    move = jax.vmap(move, in_axes=(None, 0, 0, 0, 0))  # examples
    move = jax.vmap(move, in_axes=(0, 1, 1, 1, 1), out_axes=1)  # lanes

    def step(state: _State, lane: _Lane, images: jax.Array, labels: jax.Array) -> _State:
        gradient, score = jax.grad(score_fn, has_aux=True)(state.point, labels)
        return move(lane, state, score, gradient, images)

    return step


def _make_move(ball: Ball, tracked: bool, can_stop: bool) -> Callable[..., _State]:
    """Returns the move of one example in one lane, given loss and gradient where it stands."""

    def move(
        lane: _Lane, state: _State, score: _Score, gradient: jax.Array, image: jax.Array
    ) -> _State:
        if tracked:
            state = _keep_stronger(state, score)
        # With decay 0 the momentum is the gradient up to a positive factor, which direction()
        # drops: one formula serves PGD, BIM, FGSM and MI-FGSM.
        momentum = lane.decay * state.momentum + l1_normalize(gradient)
        point = state.point + lane.step_size * ball.direction(momentum)
        point = ball.project(point, image, lane.epsilon)
        if can_stop:
            point = jnp.where(lane.early_stop & score.success, state.point, point)
        return state._replace(point=point, momentum=momentum)

    return move


def _keep_stronger(state: _State, score: _Score) -> _State:
    """Makes the current point the best one if it fools the network and the best did not, or if
    both or neither do and its loss is higher. Works on one example or on a batch of them."""
    current = _Score(*score)
    better = _is_stronger(current, _Score(state.success, state.loss))
    mask = better.reshape(*better.shape, *([1] * (state.point.ndim - better.ndim)))
    return state._replace(
        best=jnp.where(mask, state.point, state.best),
        success=jnp.where(better, current.success, state.success),
        loss=jnp.where(better, current.loss, state.loss),
    )


def _is_stronger(a: _Score, b: _Score) -> jax.Array:
    return (a.success & ~b.success) | ((a.success == b.success) & (a.loss > b.loss))


def _finish(
    score_fn: Callable[..., Any], tracked: bool, state: _State, lane: _Lane, labels: jax.Array
) -> tuple[jax.Array, _Score]:
    """Scores the last point, where anybody asks for it, and chooses between it and the best."""
    if not tracked:
        return state.point, _Score(state.success, state.loss)
    _, last = score_fn(state.point, labels)
    state = _keep_stronger(state, last)
    keep = jnp.broadcast_to(lane.keep_best, last.loss.shape)
    pixels_keep = keep.reshape(*keep.shape, *([1] * (state.point.ndim - keep.ndim)))
    adversarial = jnp.where(pixels_keep, state.best, state.point)
    score = _Score(
        jnp.where(keep, state.success, last.success), jnp.where(keep, state.loss, last.loss)
    )
    return adversarial, score


def _strongest_restart(points: jax.Array, score: _Score, first: int, stop: int) -> jax.Array:
    """Returns (B, H, W, C): for each example the strongest of lanes first to stop - 1."""
    best, best_score = points[:, first], jax.tree.map(lambda x: x[:, first], score)
    for lane in range(first + 1, stop):
        lane_score = jax.tree.map(lambda x, i=lane: x[:, i], score)
        better = _is_stronger(lane_score, best_score)
        best = jnp.where(better[:, None, None, None], points[:, lane], best)
        best_score = jax.tree.map(lambda a, b, m=better: jnp.where(m, a, b), lane_score, best_score)
    return best


def _stack(lanes: list[AttackSpec]) -> _Lane:
    """Returns the numbers of the lanes as arrays (L,); a targeted lane is told by its loss."""

    def column(field: str, dtype: Any) -> jax.Array:
        return jnp.stack([jnp.asarray(getattr(lane, field), dtype) for lane in lanes])

    return _Lane(
        *(column(field, jnp.float32) for field in ("epsilon", "step_size", "decay")),
        *(column(field, bool) for field in ("keep_best", "early_stop")),
    )


def _initial_state(points: jax.Array) -> _State:
    """Returns the state before the first step: nothing visited yet."""
    shape = points.shape[:2]
    return _State(
        point=points,
        momentum=jnp.zeros_like(points),
        best=points,
        success=jnp.zeros(shape, bool),
        loss=jnp.full(shape, -jnp.inf, jnp.float32),
    )


def _starts(
    lanes: list[AttackSpec],
    restarts: list[int],
    ball: Ball,
    images: jax.Array,
    key: jax.Array | None,
) -> jax.Array:
    """Returns the first points (B, L, H, W, C)."""
    columns = []
    for index, (lane, restart) in enumerate(zip(lanes, restarts, strict=True)):
        column = images[:, index]
        if lane.random_start:
            if key is None:
                raise ValueError(f"{lane.name} starts at random and needs a key")
            column = _random_start(
                jax.random.fold_in(key, restart), ball, column, jnp.float32(lane.epsilon)
            )
        columns.append(column)
    return jnp.stack(columns, axis=1)


def _random_start(key: jax.Array, ball: Ball, images: jax.Array, epsilon: jax.Array) -> jax.Array:
    """Draws a start for each image (B, H, W, C), the same wherever the image stands in a batch."""

    def draw(image: jax.Array) -> jax.Array:
        noise = ball.sample(jax.random.fold_in(key, _fingerprint(image)), image.shape)
        return ball.project(image + epsilon * noise, image, epsilon)

    return jax.vmap(draw)(images)


def _fingerprint(image: jax.Array) -> jax.Array:
    """Returns a uint32 of an image's bits: a weighted sum modulo 2³², exact in any order."""
    bits = jax.lax.bitcast_convert_type(image.astype(jnp.float32), jnp.uint32).ravel()
    weights = jnp.arange(bits.size, dtype=jnp.uint32) * jnp.uint32(2654435762) + jnp.uint32(1)
    return jnp.sum(bits * weights, dtype=jnp.uint32)
