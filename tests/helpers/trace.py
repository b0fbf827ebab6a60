"""A short trace of everything a user sees: rollouts in three kinds of world, and GoalRank's first losses.

    python -m tests.helpers.trace            prints the trace as JSON
    python -m tests.helpers.trace --write    keeps it in tests/helpers/trace.json

Moving code must leave the trace as it is, digests included (same machine, same library versions). A change that
means to alter what is played writes the trace anew in its own commit and says why.
"""

import hashlib
import json
import sys
from pathlib import Path
from typing import Any

import torch
from ray.rllib.policy.sample_batch import MultiAgentBatch, SampleBatch

from agents.goalrank import GoalRank, GoalRankConfig
from agents.rllib.algorithm import MethodAlgorithmConfig
from agents.rllib.env_runner import MethodEnvRunner
from recsim_env.envs import RecVectorEnv
from recsim_env.known_worlds import short_video_world, tiny_world
from recsim_env.world import World, load_worlds
from tests.helpers.learned import shared_build

KEPT = Path(__file__).with_suffix(".json")
ENV_ID = "recsim_env:recsim_env/Session-v0"


def rollout(world: World, num_envs: int = 8, steps: int = 12) -> dict[str, Any]:
    """Plays fixed positions of the candidate set; digests of every byte beside figures to read."""
    env = RecVectorEnv(num_envs, world=world)
    request = env.reset_tensors(seed=7)
    digest = hashlib.sha256()
    items, rewards = [], []
    for step in range(steps):
        order_BC = torch.argsort((torch.arange(request.candidates_BC.shape[1]) * 37 + 11 * step) % 101)
        slate_BK = request.candidates_BC[:, order_BC[: env.config.slate_size]]
        transition = env.step_tensors(slate_BK)
        request = transition.request
        for tensor in (*request, *transition.feedback, transition.rewards_BR, transition.terminated_B):
            digest.update(tensor.contiguous().numpy().tobytes())
        items.append(slate_BK[0].tolist())
        rewards.append([round(value, 4) for value in transition.reward_B.tolist()])
    return {"items_of_row_0": items, "reward": rewards, "digest": digest.hexdigest()}


def goalrank_losses(world_folder: Path, updates: int = 3) -> list[float]:
    """The first losses of GoalRank in world A, sampled and learned in this process."""
    settings = GoalRankConfig(width=16, heads=2, item_embedding=4, minibatch_size=128, num_epochs=1)
    config = (
        MethodAlgorithmConfig(GoalRank)
        .environment(ENV_ID, env_config={"world": str(world_folder)})
        .env_runners(num_envs_per_env_runner=16, rollout_fragment_length=8)
        .training(method_config=settings)
    )
    runner = MethodEnvRunner(config=config, worker_index=0, num_workers=0)
    learner = config.build_learner(env=runner.env)
    learner.set_state({"rl_module": {"default_policy": runner.module.get_state()}})
    losses = []
    for _ in range(updates):
        batch = SampleBatch({name: column[:96] for name, column in runner.sample().items()})
        results = learner.update(
            batch=MultiAgentBatch({"default_policy": batch}, env_steps=len(batch)), num_epochs=1, minibatch_size=96
        )
        losses.append(float(results["default_policy"]["loss"].peek()))
        runner.set_state({"rl_module": learner.get_state(components="rl_module")["rl_module"]})
    return losses


def trace() -> dict[str, Any]:
    """Everything, in under a minute on one core."""
    torch.set_num_threads(1)
    found: dict[str, Any] = {
        "tiny": rollout(tiny_world()),
        "short_video": rollout(short_video_world(num_users=500, num_items=300, seed=2)),
    }
    folders = shared_build()
    found |= {f"learned {name}": rollout(world) for name, world in load_worlds(folders).items()}
    found["goalrank_losses"] = goalrank_losses(folders["A"])
    return found


def main() -> None:
    """Prints the trace, or keeps it."""
    parts = (f" {json.dumps(name)}: {json.dumps(part)}" for name, part in trace().items())
    text = "{\n" + ",\n".join(parts) + "\n}\n"
    if "--write" in sys.argv:
        KEPT.write_text(text)
    else:
        print(text, end="")


if __name__ == "__main__":
    main()
