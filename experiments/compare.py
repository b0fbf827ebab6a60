"""Tables over settings, methods, training seeds and worlds; only what is missing is run.

    python -m experiments.compare goalrank        GoalRank beside the baselines, in whole sessions
    python -m experiments.compare rerankers       generators, their choice, GoalRank's variants, on the same requests
    python -m experiments.compare offline         the reranking papers' protocol on labelled requests
    python -m experiments.compare ranking         fixed policies in the order of each world and of the truth
    python -m experiments.compare response-bars   learned users against the test days of a real log
    python -m experiments.compare off-the-log     slates that nobody chose, by how many of them a log holds

Each finished run leaves one small JSON file in ``experiments/results``; a kept file is used again only if the
settings, sizes, seeds and the content of log and worlds are those asked for. Intervals are over sessions and training
seeds together. ``--json`` writes ``rows`` and ``checks`` (name, bar, value, low, high, verdict).
"""

from collections.abc import Callable

import tyro

from experiments.command import run_command
from experiments.tables.goalrank import GoalRankTable
from experiments.tables.off_the_log import OffTheLog
from experiments.tables.offline import OfflineTable
from experiments.tables.ranking import RankingTable
from experiments.tables.rerankers import RerankersTable
from experiments.tables.response_bars import ResponseBars
from experiments.tables.runner import Table, complete, show

TABLES: dict[str, Callable[..., Table]] = {
    "goalrank": GoalRankTable,
    "rerankers": RerankersTable,
    "offline": OfflineTable,
    "ranking": RankingTable,
    "response-bars": ResponseBars,
    "off-the-log": OffTheLog,
}
"""Tables by name."""


def main(table: Table) -> None:
    """Runs what is missing and prints the table."""
    show(complete(table.outline, table.runs(), table.run), table.run)


if __name__ == "__main__":
    run_command(main, lambda: tyro.extras.subcommand_cli_from_dict(TABLES, description=__doc__))
