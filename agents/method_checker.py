"""``check_method``: runs a training method on a few requests and says in words what is wrong with it.

Shape legend: B sessions, K places, T steps.
"""

import dataclasses
from typing import Any

import torch
from torch import Tensor, nn

from agents.method import (
    DATA_SOURCES,
    Columns,
    Method,
    MethodConfig,
    Operator,
    Rollout,
    Step,
    as_used,
    begin,
    collect,
    label,
    log_columns,
    make_method,
    method_class,
    method_path,
    optimisers,
    targets,
)
from agents.networks import RequestShape
from recsim_env.checkers import check_policy
from recsim_env.data.requests import LoggedBatch
from recsim_env.envs import RecVectorEnv
from recsim_env.findings import Report
from recsim_env.types import Feedback, ListEvaluator, Request
from recsim_env.world import World

_STEPS = 3


def check_method(
    method: type | str, world: World | str | None = None, *, evaluator: ListEvaluator | None = None, **settings: Any
) -> None:
    """Checks a method: settings, network, what it collects and labels, loss, gradients, optimisers, targets.

    Args:
        method: the method's class, or its path "module:Class".
        world: the world to try it in; the default short-video world if ``None``.
        evaluator: values lists in place of the world's own evaluator.
        settings: of the method; small ones make the check fast.

    Raises:
        ValueError: a list of everything found.
    """
    kind: Any = method_class(method)
    report = Report("method", kind)
    _check_config(report, kind)
    report.attempt("its path", lambda: method_path(kind))
    made = report.attempt("its constructor", lambda: make_method(kind, settings))
    if made is not None and not report.findings:
        env = RecVectorEnv(4, world or "short_video")
        request = env.reset_tensors(seed=0)
        shape = RequestShape.of(request, len(env.world.catalogue), env.config.slate_size)
        network = _network(report, made, shape, env.world)
        if network is not None:
            operator = Operator(
                signals=env.world.signals,
                catalogue=env.world.catalogue,
                slate_size=shape.slate_size,
                evaluator=evaluator or env.world.evaluator,
            )
            batch = _batch(report, made, network, env, request, operator)
            if batch is not None:
                _check_learning(report, made, network, batch)
    report.close()


def _check_config(report: Report, kind: Any) -> None:
    params = getattr(kind.Config, "__dataclass_params__", None)
    well = report.add(
        params is None or not params.frozen,
        "Config must be a frozen dataclass: @dataclass(frozen=True, kw_only=True)",
    )
    if well:
        names = {field.name for field in dataclasses.fields(kind.Config)}
        needed = {field.name for field in dataclasses.fields(MethodConfig)}
        if missing := sorted(needed - names):
            report.add(True, f"Config lacks the fields {missing}; inherit agents.method.MethodConfig")
        needs_tau = bool(targets(kind)) and "tau" not in names
        report.add(needs_tau, "targets follow by config.tau, and Config has no tau")
        needs_replay = kind.data == "replay" and "replay_size" not in names
        report.add(needs_replay, "a replay needs ReplayConfig's fields; inherit agents.method.ReplayConfig")
    report.add(kind.data not in DATA_SOURCES, f"data must be one of {DATA_SOURCES}, got {kind.data!r}")
    logs = kind.data == "log" and not hasattr(kind, "from_log")
    report.add(logs, "a method with data = 'log' needs from_log(batch) -> columns")


def _network(report: Report, method: Method, shape: RequestShape, world: World) -> Any:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        network = report.attempt("network(shape)", lambda: method.network(shape))
        if network is None:
            return None
        kind = type(network).__name__
        if not report.add(not isinstance(network, nn.Module), f"network must be an nn.Module, got {kind}"):
            return None
        torch.manual_seed(2)
        again: Any = method.network(shape).state_dict()
    alike = all(torch.equal(value, again[name]) for name, value in network.state_dict().items())
    report.add(not alike, "two new networks of the same settings differ; seed the weights from config.seed alone")
    with as_used(network):
        try:
            check_policy(network, world)
        except ValueError as error:
            report.add(True, f"as a policy, {str(error).partition(': ')[2]}")
    return network


def _batch(
    report: Report, method: Method, network: Any, env: RecVectorEnv, request: Request, operator: Operator
) -> Columns | None:
    """A small batch of the kind that the method learns from."""
    if method.data == "log":
        return report.attempt("from_log", lambda: log_columns(method, _logged(request, operator.slate_size)))
    if not hasattr(method, "collect"):
        lacks = "network has no explore(request, generator) -> Step, and the method no collect"
        if not report.add(not hasattr(network, "explore"), lacks):
            return None
    before = len(report.findings)
    report.attempt("begin", lambda: begin(method, operator))
    if len(report.findings) > before:
        return None
    generator, steps, transitions = torch.Generator().manual_seed(0), [], []
    for number in range(_STEPS):
        asked = request
        step = report.attempt("collect", lambda: collect(method, network, asked, operator, generator, number))  # noqa: B023
        if step is None or not _check_step(report, step, asked, operator.slate_size):
            return None
        transition = env.step_tensors(step.items_BK)
        steps.append({**request._asdict(), **step.columns})
        transitions.append(transition)
        request = transition.request
    rollout = Rollout(
        columns={name: torch.stack([columns[name] for columns in steps]) for name in steps[0]},
        reward_TB=torch.stack([t.reward_B for t in transitions]),
        rewards_TBR=torch.stack([t.rewards_BR for t in transitions]),
        terminated_TB=torch.stack([t.terminated_B for t in transitions]),
        truncated_TB=torch.stack([t.truncated_B for t in transitions]),
        valid_TB=torch.stack([t.valid_B for t in transitions]),
        last=request,
    )
    with torch.no_grad():
        labelled = report.attempt("label", lambda: label(method, network, rollout))
    if labelled is None:
        return None
    rows = tuple(rollout.valid_TB.shape)
    short = [name for name, tensor in labelled.items() if tuple(tensor.shape[:2]) != rows]
    if not report.add(short, f"label must give columns of {rows} steps and sessions; {short} have others"):
        return None
    return rollout.valid_rows(labelled)


def _check_step(report: Report, step: object, request: Request, slate_size: int) -> bool:
    if not isinstance(step, Step):
        return report.add(True, f"exploring must answer a Step, got {type(step).__name__}")
    sessions = len(request.user_B)
    well = report.tensor("the items of a Step", step.items_BK, (sessions, slate_size), torch.int64)
    taken = sorted(step.columns.keys() & set(Request._fields))
    well &= report.add(taken, f"columns {taken} have names of the request's own fields")
    short = [name for name, tensor in step.columns.items() if len(tensor) != sessions]
    return report.add(short, f"columns {short} do not have one row for each session") and well


def _check_learning(report: Report, method: Method, network: Any, batch: Columns) -> None:
    network.train()
    outputs = report.attempt("outputs", lambda: method.outputs(network, batch))
    told = report.attempt("loss", lambda: method.loss(outputs, batch)) if outputs is not None else None
    if told is None:
        return
    if not (isinstance(told, tuple) and len(told) == 2 and isinstance(told[0], Tensor) and told[0].dim() == 0):
        report.add(True, "loss must answer a scalar tensor and a mapping of scalars to log")
        return
    loss, logged = told
    report.add(not bool(loss.isfinite()), f"the first loss is {float(loss.detach())}")
    large = [name for name, value in logged.items() if getattr(value, "numel", lambda: 1)() != 1]
    report.add(large, f"{large} to be logged are not scalars")
    if not report.add(loss.grad_fn is None, "the loss carries no gradient; compute outputs outside no_grad"):
        return
    loss.backward()  # type: ignore[no-untyped-call]
    trainable = {name: p for name, p in network.named_parameters() if p.requires_grad}
    untouched = [name for name, p in trainable.items() if p.grad is None]
    report.add(
        untouched,
        f"{untouched} get no gradient, which distributed training does not survive; leave them out of the network, "
        "switch requires_grad off, or make an output depend on them",
    )
    _check_optimisers(report, method, network, trainable)


def _check_optimisers(report: Report, method: Method, network: Any, trainable: dict[str, nn.Parameter]) -> None:
    found = report.attempt("optimisers", lambda: optimisers(method, network))
    if found is None:
        return
    fitted = [id(p) for optimiser in found.values() for p in optimiser.parameters]
    report.add(len(fitted) != len(set(fitted)), "two optimisers share a parameter")
    left = [name for name, p in trainable.items() if id(p) not in set(fitted)]
    report.add(left, f"no optimiser fits {left}")
    for copy, original in targets(method).items():
        pair = report.attempt(
            "targets",
            lambda: (network.get_submodule(copy), network.get_submodule(original)),  # noqa: B023
        )
        if pair is not None:
            trained = any(p.requires_grad for p in pair[0].parameters())
            report.add(trained, f"the target copy {copy!r} is trainable; call requires_grad_(False) on it")


def _logged(request: Request, slate_size: int) -> LoggedBatch:
    """Requests with the head of their candidates as the slate, half of which was watched."""
    items_BK = request.candidates_BC[:, :slate_size]
    signals_BKF = request.predicted_BCF[:, :slate_size].round()
    seen_BK = torch.ones_like(items_BK, dtype=torch.bool)
    left_B = torch.zeros(len(items_BK), dtype=torch.bool)
    return LoggedBatch(
        request=request,
        items_BK=items_BK,
        feedback=Feedback(signals_BKF, seen_BK, left_B),
        known_BKF=torch.ones_like(signals_BKF, dtype=torch.bool),
        propensity_BK=torch.full(items_BK.shape, torch.nan),
        uniform_B=left_B,
        row_BK=torch.arange(items_BK.numel()).view_as(items_BK),
    )
