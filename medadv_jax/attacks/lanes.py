"""The attack loop, in pieces.

Several attacks, radii and restarts run as lanes of one batch: the network sees (B·L) images at a
time, while start, step and projection are written for one image and mapped over examples and
lanes by `jax.vmap`. Lanes lie inside the batch axis, (B, L, H, W, C), so that a batch sharded over
devices stays where it is. Finished lanes are dropped, so short attacks stay cheap.

The gradient is that of a summed per-example loss with respect to pixels alone; parameters that
`logits_fn` closes over get none.

For one example: `random_start`, `initial_state`, `accumulate`, `step_example`. For a batch of
lanes: `plan_lanes`, `start_lanes`, `make_score_fn`, `run_lanes`, `finish_lanes`,
`strongest_restarts`.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from medadv_jax.attacks.losses import LOSSES
from medadv_jax.attacks.norms import Ball, l1_normalize
from medadv_jax.attacks.restriction import Restriction, make_ball
from medadv_jax.attacks.spec import AttackSpec, LogitsFn

LOOPS = ("fori_loop", "unrolled")


class LaneNumbers(NamedTuple):
    """The numbers of an attack that may differ between lanes; each (), or (L,) stacked."""

    epsilon: Any  # float32
    step_size: Any  # float32
    decay: Any  # float32
    keep_best: Any = False  # bool
    early_stop: Any = False  # bool


class Score(NamedTuple):
    """How an attack does at a point; each (), or (B, L) for a batch of lanes."""

    success: jax.Array  # bool: does the point fool the network?
    loss: jax.Array  # float32, signed so that the attack raises it


class LaneState(NamedTuple):
    """Where the attack on an example stands."""

    point: jax.Array  # (H, W, C) the current adversarial image
    best: jax.Array  # (H, W, C) the strongest point visited
    success: jax.Array  # () bool: does the strongest point fool the network?
    loss: jax.Array  # () float32: the strongest point's loss

    @property
    def score(self) -> Score:
        """The score of the strongest point."""
        return Score(self.success, self.loss)


_Carry = tuple[LaneState, jax.Array]  # see `_make_step`


class Plan(NamedTuple):
    """The lanes of a call, longest first, and what they share."""

    lanes: list[AttackSpec]
    restarts: list[int]  # number of the random start of each lane
    order: list[int]  # position of each lane in the caller's order
    ball: Ball
    restriction: Restriction
    loss: str
    targeted: bool
    tracked: bool  # does any lane return its strongest point?
    can_stop: bool  # does any lane leave misclassified examples where they are?


def random_start(key: jax.Array, ball: Ball, image: jax.Array, epsilon: jax.Array) -> jax.Array:
    """Returns a random point of the ball around an image (H, W, C).

    The draw depends on the key and on the image's own pixels, not on its place in a batch.
    """
    noise = ball.sample(jax.random.fold_in(key, fingerprint(image)), image.shape)
    return ball.project(image + epsilon * noise, image, epsilon)


def fingerprint(image: jax.Array) -> jax.Array:
    """Returns a uint32 of an image's bits: a weighted sum modulo 2³², exact in any order."""
    bits = jax.lax.bitcast_convert_type(image.astype(jnp.float32), jnp.uint32).ravel()
    weights = jnp.arange(bits.size, dtype=jnp.uint32) * jnp.uint32(2654435762) + jnp.uint32(1)
    return jnp.sum(bits * weights, dtype=jnp.uint32)


def initial_state(points: jax.Array, batch_shape: tuple[int, ...] = ()) -> LaneState:
    """Returns the state at the first points (*batch_shape, H, W, C): nothing scored yet."""
    return LaneState(
        point=points,
        best=points,
        success=jnp.zeros(batch_shape, bool),
        loss=jnp.full(batch_shape, -jnp.inf, jnp.float32),
    )


def needs_momentum(attack: AttackSpec) -> bool:
    """Tells whether an attack's steps depend on more than its last gradient up to rounding.

    In L∞ only the sign of the gradient matters, so that an attack of decay 0 needs no momentum. In
    L2 it would change rounding.
    """
    follows_last = isinstance(attack.decay, int | float) and attack.decay == 0
    return attack.norm != "linf" or not follows_last


def accumulate(decay: jax.Array, momentum: jax.Array, gradient: jax.Array) -> jax.Array:
    """Returns the momentum (H, W, C) after one more gradient (Dong et al. 2018, eq. 6).

    With decay 0 it is the gradient up to a positive factor, which `Ball.direction` drops: one
    formula serves PGD, BIM, FGSM and MI-FGSM.
    """
    return decay * momentum + l1_normalize(gradient)


def step_example(
    ball: Ball,
    numbers: LaneNumbers,
    state: LaneState,
    score: Score,
    ascent: jax.Array,
    image: jax.Array,
    *,
    tracked: bool = True,
    can_stop: bool = True,
) -> LaneState:
    """Moves one example by one step.

    Args:
      ball: the geometry.
      numbers: of the attack, each ().
      state: before the step.
      score: of `state.point`.
      ascent: (H, W, C), the gradient of the loss at `state.point`, or the momentum.
      image: (H, W, C), the centre of the ball.
      tracked: whether to keep the strongest point visited.
      can_stop: whether `numbers.early_stop` is looked at.
    """
    if tracked:
        state = keep_stronger(state, score)
    point = state.point + numbers.step_size * ball.direction(ascent)
    point = ball.project(point, image, numbers.epsilon)
    if can_stop:
        point = jnp.where(numbers.early_stop & score.success, state.point, point)
    return state._replace(point=point)


def keep_stronger(state: LaneState, score: Score) -> LaneState:
    """Makes the current point the strongest if its score is higher; one example or a batch."""
    kept = choose_rows(
        is_stronger(score, state.score), (state.point, score), (state.best, state.score)
    )
    return state._replace(best=kept[0], success=kept[1].success, loss=kept[1].loss)


def choose_rows(mask: jax.Array, yes: Any, no: Any) -> Any:
    """Returns, for trees of arrays (*mask.shape, …), the rows of `yes` where `mask` is true, else
    those of `no`."""

    def choose(a: jax.Array, b: jax.Array) -> jax.Array:
        return jnp.where(mask.reshape(*mask.shape, *[1] * (a.ndim - mask.ndim)), a, b)

    return jax.tree.map(choose, yes, no)


def is_stronger(a: Score, b: Score) -> jax.Array:
    """Returns whether `a` fools the network and `b` does not, or is higher among equals."""
    return (a.success & ~b.success) | ((a.success == b.success) & (a.loss > b.loss))


def plan_lanes(attacks: Sequence[AttackSpec]) -> Plan:
    """Returns a lane for each attack and restart; ValueError if attacks cannot share a batch."""
    kinds = {(each.norm, each.restriction, each.loss, each.targeted) for each in attacks}
    if len(kinds) > 1:
        raise ValueError(
            f"attacks of one call share norm, restriction, loss and direction; got {sorted(kinds)}"
        )
    norm, restriction, loss, targeted = kinds.pop()
    lanes = [attack for attack in attacks for _ in range(attack.num_restarts)]
    restarts = [restart for attack in attacks for restart in range(attack.num_restarts)]
    order = sorted(range(len(lanes)), key=lambda lane: -lanes[lane].num_steps)
    return Plan(
        lanes=[lanes[lane] for lane in order],
        restarts=[restarts[lane] for lane in order],
        order=order,
        ball=make_ball(norm, restriction),
        restriction=restriction,
        loss=loss,
        targeted=targeted,
        tracked=any(lane.keep_best or lane.num_restarts > 1 for lane in lanes),
        can_stop=any(lane.early_stop for lane in lanes),
    )


def start_lanes(
    plan: Plan, images: jax.Array, labels: jax.Array, key: jax.Array | None
) -> tuple[LaneState, jax.Array, jax.Array]:
    """Returns the first state, and images (B, L, H, W, C) and labels (B, L) in the plan's order."""
    order = jnp.array(plan.order)
    images, labels = images[:, order], labels[:, order]
    points = [
        _lane_start(plan, lane, images[:, lane], key) for lane in range(len(plan.lanes))
    ]  # fmt: skip
    return initial_state(jnp.stack(points, axis=1), labels.shape), images, labels


def _lane_start(plan: Plan, lane: int, images: jax.Array, key: jax.Array | None) -> jax.Array:
    """Returns the first points (B, H, W, C) of one lane."""
    attack = plan.lanes[lane]
    if not attack.random_start:
        return images
    if key is None:
        raise ValueError(f"{attack.name} starts at random and needs a key")
    key, epsilon = jax.random.fold_in(key, plan.restarts[lane]), jnp.float32(attack.epsilon)
    return jax.vmap(lambda image: random_start(key, plan.ball, image, epsilon))(images)


def make_score_fn(
    plan: Plan, logits_fn: LogitsFn, penalty_fn: LogitsFn | None = None
) -> Callable[..., tuple[jax.Array, Score]]:
    """Returns (points (B, L, H, W, C), labels (B, L)) -> (summed loss, scores (B, L))."""
    loss_fn = LOSSES[plan.loss]

    def score(points: jax.Array, labels: jax.Array) -> tuple[jax.Array, Score]:
        flat = plan.restriction.restrict_gradient(points.reshape(-1, *points.shape[2:]))
        logits = logits_fn(flat).astype(jnp.float32)
        loss = loss_fn(logits, labels.ravel())
        is_label = jnp.argmax(logits, axis=-1) == labels.ravel()
        success, loss = (is_label, -loss) if plan.targeted else (~is_label, loss)
        if penalty_fn is not None:
            loss -= penalty_fn(flat)
        scores = Score(success.reshape(labels.shape), loss.reshape(labels.shape))
        return jnp.sum(loss), scores

    return score


def run_lanes(
    plan: Plan,
    score_fn: Callable[..., tuple[jax.Array, Score]],
    state: LaneState,
    images: jax.Array,
    labels: jax.Array,
    loop: str,
) -> LaneState:
    """Runs all lanes to the smallest number of steps, the rest to the next smallest, and so on."""
    lanes, finished, done = plan.lanes, [], 0
    momentum = jnp.zeros_like(_choose_lanes(state.point, _with_momentum(lanes)))
    while lanes:
        active, until = len(lanes), lanes[-1].num_steps
        step = _make_step(plan, score_fn, lanes, images[:, :active], labels[:, :active])
        state, momentum = _repeat(step, until - done, (state, momentum), loop)
        staying = sum(lane.num_steps > until for lane in lanes)
        finished.append(jax.tree.map(lambda x, s=staying: x[:, s:], state))
        state = jax.tree.map(lambda x, s=staying: x[:, :s], state)
        lanes, done = lanes[:staying], until
        momentum = momentum[:, : len(_with_momentum(lanes))]
    return jax.tree.map(lambda *x: jnp.concatenate(x, axis=1), *reversed(finished))


def _with_momentum(lanes: Sequence[AttackSpec]) -> list[int]:
    return [number for number, lane in enumerate(lanes) if needs_momentum(lane)]


def _choose_lanes(x: jax.Array, chosen: Sequence[int]) -> jax.Array:
    """Returns lanes of (B, L, …) by slices, which compilers fuse, unlike a gather."""
    return jnp.concatenate([x[:, :0], *(x[:, lane : lane + 1] for lane in chosen)], axis=1)


def _make_step(
    plan: Plan,
    score_fn: Callable[..., tuple[jax.Array, Score]],
    lanes: Sequence[AttackSpec],
    images: jax.Array,
    labels: jax.Array,
) -> Callable[[_Carry], _Carry]:
    """Returns one step of `lanes`: a gradient of the batch, then a move of each example.

    What it carries from step to step is the state of all lanes, and the momentum (B, M, H, W, C) of
    those M that need it.
    """
    numbers, chosen = _stack(lanes), _with_momentum(lanes)
    decay = numbers.decay[jnp.array(chosen, int)]
    # Where each lane's direction is in the momenta, then the gradients.
    places = [
        chosen.index(lane) if lane in chosen else len(chosen) + lane for lane in range(len(lanes))
    ]

    def move(numbers: LaneNumbers, *example: Any) -> LaneState:
        return step_example(
            plan.ball, numbers, *example, tracked=plan.tracked, can_stop=plan.can_stop
        )

    accumulate_lanes = _over_lanes(accumulate)
    move_lanes = _over_lanes(move)

    def step(carry: _Carry) -> _Carry:
        state, momentum = carry
        gradient, score = jax.grad(score_fn, has_aux=True)(state.point, labels)
        ascent = gradient
        if chosen:
            momentum = accumulate_lanes(decay, momentum, _choose_lanes(gradient, chosen))
            ascent = _choose_lanes(jnp.concatenate([momentum, gradient], axis=1), places)
        return move_lanes(numbers, state, score, ascent, images), momentum

    return step


def _over_lanes(function: Callable[..., Any]) -> Callable[..., Any]:
    """Maps (numbers of a lane, of one example …) over lanes (L,), (B, L, …)."""

    def run(numbers: Any, *batch: Any) -> Any:
        examples = jax.vmap(function, in_axes=(None, *[0] * len(batch)))
        return jax.vmap(examples, in_axes=(0, *[1] * len(batch)), out_axes=1)(numbers, *batch)

    return run


def _stack(lanes: Sequence[AttackSpec]) -> LaneNumbers:
    """Returns the numbers of the lanes as arrays (L,)."""

    def column(field: str, dtype: Any) -> jax.Array:
        return jnp.stack([jnp.asarray(getattr(lane, field), dtype) for lane in lanes])

    return LaneNumbers(
        *(column(field, jnp.float32) for field in ("epsilon", "step_size", "decay")),
        *(column(field, bool) for field in ("keep_best", "early_stop")),
    )


def _repeat(step: Callable[[_Carry], _Carry], times: int, state: _Carry, loop: str) -> _Carry:
    """Applies `step` `times` times."""
    if loop not in LOOPS:
        raise ValueError(f"loop={loop!r}: known are {', '.join(LOOPS)}")
    if loop == "fori_loop" and times > 1:
        return jax.lax.fori_loop(0, times, lambda _, state: step(state), state)
    for _ in range(times):
        state = step(state)
    return state


def finish_lanes(
    plan: Plan,
    score_fn: Callable[..., tuple[jax.Array, Score]],
    state: LaneState,
    labels: jax.Array,
) -> tuple[jax.Array, Score]:
    """Returns the results (B, L, H, W, C) and their scores (B, L), in the caller's order."""
    result = _choose_points(plan, score_fn, state, labels)
    restore = jnp.array([plan.order.index(lane) for lane in range(len(plan.order))])
    adversarial, score = jax.tree.map(lambda x: x[:, restore], result)
    return jax.lax.stop_gradient(adversarial), score


def _choose_points(
    plan: Plan,
    score_fn: Callable[..., tuple[jax.Array, Score]],
    state: LaneState,
    labels: jax.Array,
) -> tuple[jax.Array, Score]:
    """Returns the last points, or the strongest ones in lanes with `keep_best`."""
    if not plan.tracked:
        return state.point, state.score
    _, last = score_fn(state.point, labels)
    state = keep_stronger(state, last)
    keep = jnp.broadcast_to(_stack(plan.lanes).keep_best, last.loss.shape)
    return choose_rows(keep, (state.best, state.score), (state.point, last))


def strongest_restarts(
    attacks: Sequence[AttackSpec], adversarial: jax.Array, score: Score
) -> jax.Array:
    """Returns (L, B, H, W, C): of each attack the strongest restart of each example."""
    results, first = [], 0
    for attack in attacks:
        stop = first + attack.num_restarts
        results.append(_strongest_restart(adversarial, score, first, stop))
        first = stop
    return jnp.stack(results)


def _strongest_restart(points: jax.Array, score: Score, first: int, stop: int) -> jax.Array:
    """Returns (B, H, W, C): for each example the strongest of lanes first to stop - 1."""
    lanes = [
        jax.tree.map(lambda x, i=lane: x[:, i], (points, score)) for lane in range(first, stop)
    ]
    best = lanes[0]
    for lane in lanes[1:]:
        best = choose_rows(is_stronger(lane[1], best[1]), lane, best)
    return best[0]
