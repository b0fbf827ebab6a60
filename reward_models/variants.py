"""Worlds that differ from a built one in one thing: the truth behind the same recommender, no declared list effect."""

from recsim_env.world import World
from reward_models.fidelity.card import acted_figures, with_verdicts


def with_recommender(truth: World, learned: World, name: str = "truth") -> World:
    """A known world as the learned world's recommender sees it: same users, models, features and histories."""
    return truth.replace(
        name=name,
        catalogue=learned.catalogue,
        users=learned.users,
        population_P=learned.population_P,
        recommender=learned.recommender,
    )


def without_list_effect(world: World) -> World:
    """A learned world as it would have been built with no declared list effect: same users, same models."""
    plain = world.replace(
        list_effect=None,
        evaluator=world.evaluator.with_list_effect(None),  # type: ignore[union-attr]
        declared={name: value for name, value in world.declared.items() if name != "list_effect"},
    )
    sessions = world.fidelity.get("depth", {}).get("sessions", 0)
    return plain.replace(fidelity=with_verdicts(world.fidelity | acted_figures(plain, depth_sessions=sessions), plain))
