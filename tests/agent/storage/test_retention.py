"""What a policy keeps: examples, and random histories against a slow reading of the rules."""

from __future__ import annotations

import random
from datetime import UTC, datetime, timedelta

import pytest

from dsg_remote_agent.storage.retention import RULES, Dated, check_rules, choose
from dsg_remote_agent.storage.stock import Stock, Verdict, plan
from protocol.errors import UsageError
from protocol.records import SnapshotRecord

DIGEST = "sha256:" + "0" * 64


def at(*moments: str) -> list[Dated]:
    return [
        Dated(seq, int(datetime.fromisoformat(moment).replace(tzinfo=UTC).timestamp()))
        for seq, moment in enumerate(moments)
    ]


def test_the_newest_of_each_day_and_the_oldest() -> None:
    history = at("2024-03-01 10:00", "2024-03-01 23:59:59", "2024-03-02 00:00", "2024-03-04 08:00")
    assert choose(history, {"daily": 2}) == {3: ["daily"], 2: ["daily"]}
    assert choose(history, {"daily": 3}) == {3: ["daily"], 2: ["daily"], 1: ["daily"]}
    # There are three days, and four are asked for.
    assert choose(history, {"daily": 4}) == {3: ["daily"], 2: ["daily"], 1: ["daily"], 0: ["oldest"]}


def test_a_week_begins_on_monday_by_utc() -> None:
    # A Sunday's last second and a Monday's first, at a new year too.
    history = at("2023-12-31 23:59:59", "2024-01-01 00:00", "2024-01-07 23:59:59", "2024-01-08 00:00")
    assert choose(history, {"weekly": 3}) == {3: ["weekly"], 2: ["weekly"], 0: ["weekly"]}
    assert choose(history, {"monthly": 2}) == {3: ["monthly"], 0: ["monthly"]}


def test_each_rule_looks_for_itself() -> None:
    history = at("2024-03-01 10:10", "2024-03-01 10:20", "2024-03-01 11:00", "2024-03-02 09:00")
    kept = choose(history, {"last": 1, "hourly": 2, "daily": 2})
    assert kept == {3: ["last", "hourly", "daily"], 2: ["hourly", "daily"]}


def test_no_rule_is_refused() -> None:
    for rules in ({}, dict.fromkeys(RULES, 0)):
        with pytest.raises(UsageError, match="no rule"):
            check_rules(rules)
    check_rules({"monthly": 1})


def test_a_clock_that_was_put_back_and_one_that_is_far_ahead() -> None:
    history = [Dated(0, 86_400 * 100), Dated(1, 86_400 * 50), Dated(2, 86_400 * 100 + 60), Dated(3, 1 << 61)]
    assert choose(history, {"daily": 3}) == {3: ["daily"], 2: ["daily"], 1: ["daily"]}
    assert choose(history, {"monthly": 1}) == {3: ["monthly"]}


def record(seq: int, time: int) -> SnapshotRecord:
    return SnapshotRecord(
        repo_id="repo-012345", seq=seq, manifest=DIGEST, parent=DIGEST if seq else "", txid="", user="ann",
        host="", time=time, message="", entries=0, size=0, added=0, changed=0, deleted=0,
    )  # fmt: skip


def test_the_head_and_what_is_kept_stay_and_count() -> None:
    stock = Stock(frozenset({0, 2, 3, 5}), {2: "protected"})
    fates = plan([record(seq, seq * 86_400) for seq in range(6)], stock, {"last": 2}, 5)
    assert [(f.record.seq, f.verdict, f.why) for f in fates] == [
        (5, Verdict.KEEP, "head, last"),
        (3, Verdict.KEEP, "last"),
        (2, Verdict.KEEP, "protected"),
        (0, Verdict.PRUNE, ""),
    ]
    # The head stays even where a rule would not keep it.
    fates = plan([record(1, 5), record(2, 5)], Stock(frozenset({1, 2}), {}), {}, 2)
    assert [f.verdict for f in fates] == [Verdict.KEEP, Verdict.PRUNE]


def test_the_nearest_on_both_sides() -> None:
    stock = Stock(frozenset({0, 4, 9}), {})
    assert stock.nearest(2) == [0, 4] and stock.nearest(8) == [4, 9]
    assert Stock(frozenset({4}), {}).nearest(1) == [4]


# Against an oracle


def label(rule: str, seq: int, seconds: int) -> str:
    """The period of a rule as a person would write it."""
    moment = datetime(1970, 1, 1, tzinfo=UTC) + timedelta(seconds=seconds)
    year, week, _ = moment.isocalendar()
    return {
        "last": str(seq),
        "hourly": moment.strftime("%Y-%m-%d %H"),
        "daily": moment.strftime("%Y-%m-%d"),
        "weekly": f"{year} week {week}",
        "monthly": moment.strftime("%Y-%m"),
    }[rule]


def oracle(history: list[Dated], rules: dict[str, int]) -> set[int]:
    """The same by quadratic means: a snapshot is its period's newest, and few periods have a newer one."""
    kept = set()
    for rule, wanted in rules.items():
        if not wanted or not history:
            continue
        periods = {one.seq: label(rule, one.seq, one.time) for one in history}
        newest = {name: max(s for s, p in periods.items() if p == name) for name in periods.values()}
        kept |= {
            seq for name, seq in newest.items() if sum(other > seq for other in newest.values()) < wanted
        }
        if len(newest) < wanted:
            kept.add(min(periods))
    return kept


def test_random_histories(rng: random.Random) -> None:
    kept_some = pruned_some = 0
    for _ in range(600):
        now = rng.randrange(1 << 31)
        history = []
        seq = rng.randrange(3)
        for _ in range(rng.randrange(40)):
            seq += rng.choice((1, 1, 1, 5))  # what is missing was pruned before
            now = max(0, now + rng.choice((0, 30, 1800, 7200, 80_000, 700_000, 3_000_000, -100_000)))
            history.append(Dated(seq, now))
        rules = {rule: rng.choice((0, 0, 1, 2, 3, 7, 50)) for rule in RULES}
        rng.shuffle(history)
        kept = set(choose(history, rules))
        assert kept == oracle(history, rules), (history, rules)
        # Chosen once more from what was kept: the same.
        survivors = [one for one in history if one.seq in kept]
        assert set(choose(survivors, rules)) == kept, (history, rules)
        kept_some += bool(kept)
        pruned_some += len(kept) < len(history)
    assert kept_some > 200 and pruned_some > 200
