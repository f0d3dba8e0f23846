"""`poad verify`: the output, the files, and the report of a broken law."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from poad.cli.main import main
from poad.credit import METHODS, Credit, Method, token_credit
from poad.theory import exact as theory
from poad.theory import laws, sampled
from poad.theory.laws import GAMMA_TOKENS, Law, length_preference, ntpo_gap, verify
from poad.theory.problems import random_policy, random_problem
from poad.theory.signal import DRAWN_NOISE, CoinFlips

SMALL = ("--states", "4", "--actions", "4", "--depth", "3", "--problems", "3")


@pytest.fixture(autouse=True)
def few_episodes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Measure the sampled laws with few episodes; test_exact.py tests the estimators themselves."""
    monkeypatch.setattr(laws, "EPISODES", 2048)
    monkeypatch.setattr(laws, "RETURN_EPISODES", 16_384)
    monkeypatch.setattr(laws, "SAMPLE_SIZES", (64, 256, 1024))


def test_the_command_prints_every_law_and_writes_numbers_and_figures(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "160")
    out = tmp_path / "new" / "folder"
    assert main(["verify", *SMALL, "--out", str(out)]) == 0
    shown = capsys.readouterr().out
    saved = json.loads((out / "verify.json").read_text())
    assert saved["arguments"] == {"states": 4, "actions": 4, "depth": 3, "problems": 3, "seed": 0}
    assert saved["versions"]["numpy"]
    names = [law["name"] for law in saved["laws"]]
    assert len(set(names)) == len(names) >= 20
    for law in saved["laws"]:
        assert law["name"] in shown
        assert law["holds"]
        assert law["cases"] > 0
        exact = "Sampled" not in law["name"]
        assert law["deviation"] <= (1e-10 if exact else 6)
    for head in ("law", "what is measured", "largest", "deviation", "bound", "ok"):
        assert head in shown
    assert [gap["gamma_token"] for gap in saved["gaps"]] == list(GAMMA_TOKENS)
    assert {row["sign"] for row in saved["preferences"]} == {"positive", "negative"}
    assert "Root mean squared error of sampled credit" in shown
    for row in saved["convergences"]:
        assert row["method"] in shown
        assert row["episodes"] == [64, 256, 1024]
        assert row["error"][0] > row["error"][1] > row["error"][2] > 0
    assert "Signal-to-noise ratio of the gradient" in shown
    for row in saved["gains"]:
        for lam, gain in zip(row["lam"], row["gain"], strict=True):
            assert f"{gain:.3g}" in shown
            assert gain == CoinFlips(row["tokens"], row["decisions"]).gain(
                lam, row["noise"], row["trace"]
            )
    assert len(saved["gain_curves"]) == 2 * len(DRAWN_NOISE)
    for name in ("verify", "signal"):
        assert (out / f"{name}.png").read_bytes().startswith(b"\x89PNG")
        assert "<svg" in (out / f"{name}.svg").read_text()


def test_the_same_seed_gives_the_same_findings() -> None:
    size = {"states": 3, "actions": 3, "depth": 3, "problems": 2}
    assert verify(**size, seed=1) == verify(**size, seed=1)
    assert verify(**size, seed=1) != verify(**size, seed=2)


def test_actions_may_have_one_token(tmp_path: Path) -> None:
    given = ["--states", "2", "--actions", "2", "--depth", "1", "--problems", "1"]
    assert main(["verify", *given, "--out", str(tmp_path), "--quiet"]) == 0


def test_a_broken_law_ends_with_status_1_and_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    right = theory.token_backup

    def discounting_every_token(mdp, beyond, combine=theory.best, gamma_token=1.0):
        return right(mdp, beyond, combine, 0.99 * gamma_token)

    monkeypatch.setattr(theory, "token_backup", discounting_every_token)
    assert main(["verify", *SMALL, "--out", str(tmp_path), "--quiet"]) == 1
    printed = capsys.readouterr()
    assert printed.out == ""
    assert "this law fails: BAD is the optimum" in printed.err
    assert "NTPO's gap" not in printed.err  # laws.py has its own reference to the backup
    saved = json.loads((tmp_path / "verify.json").read_text())
    failed = {law["name"] for law in saved["laws"] if not law["holds"]}
    assert "Soft BAD, KL: values" in failed
    assert "Random policy, BAD" in failed


def test_a_forgotten_cost_breaks_the_laws_of_regularized_values(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(laws, "regularized", lambda _, policy, __: theory.expected(policy))
    found = verify(states=3, actions=3, depth=3, problems=2, seed=0).laws
    failed = {law.name for law in found if not law.holds}
    assert failed == {"Random policy, entropy", "Random policy, KL"}


def test_credit_by_the_wrong_method_breaks_its_laws(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(laws, "EPISODES", 8192)
    swapped = {**METHODS, "poad": METHODS["ntpo"]}
    monkeypatch.setattr(laws, "METHODS", swapped)
    failed = {law.name for law in laws.estimator_laws(0)[0] if not law.holds}
    assert failed == {
        "Sampled poad",
        "Sampled poad, all slots",
        "Sampled poad, λ 1/2 a bit",
    }


@pytest.mark.parametrize("wrong", ["lam_token", "beta"])
def test_another_trace_or_share_breaks_the_identities(
    wrong: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    problems = [random_problem(seed, states=6) for seed in range(3)]
    policies = [random_policy(mdp, seed) for seed, mdp in enumerate(problems)]
    assert all(law.holds and law.cases for law in laws.identity_laws(problems, policies, 0))

    def off(**arguments: Any) -> Credit:
        changed: dict[str, Any] = {**arguments, wrong: 0.9}
        return token_credit(**changed)

    monkeypatch.setattr(laws, "token_credit", off)
    assert not any(law.holds for law in laws.identity_laws(problems, policies, 0))


def test_a_method_that_gives_no_credit_does_not_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    right = token_credit

    def silent(*, method: Method, **arguments: Any) -> Credit:
        credit = right(method=method, **arguments)
        return replace(credit, mask=credit.mask & (method.name != "poad"))

    monkeypatch.setattr(sampled, "token_credit", silent)
    law = laws.estimator_laws(0)[0][0]
    assert law.cases == 0
    assert not law.holds


def test_a_folder_that_cannot_be_written_is_an_error(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "verify.json").mkdir()
    assert main(["verify", *SMALL, "--out", str(tmp_path), "--quiet"]) == 2
    assert "cannot write there" in capsys.readouterr().err


def test_a_law_holds_within_its_bound_and_never_for_nan() -> None:
    assert not Law("", "", float("nan"), 1e-10, 1).holds
    assert Law("", "", 0.0, 0.0, 1).holds
    assert not Law("", "", 1.0, 0.0, 1).holds


def test_the_gap_is_measured_for_200_tokens_and_every_gamma() -> None:
    law, gaps = ntpo_gap(0)
    assert law.holds
    assert law.cases == len(GAMMA_TOKENS) * 2 * 200 * 201 // 2
    by_gamma = {gap.gamma_token: gap for gap in gaps}
    assert by_gamma[1.0].measured == [0.0] * 200
    assert by_gamma[0.95].length[49] == 50
    assert by_gamma[0.95].measured[49] == pytest.approx(1 - 0.95**49)
    assert by_gamma[0.95].measured[49] != pytest.approx(1 - 0.95**50)


def test_ntpo_misses_long_optima_for_gains_and_short_ones_for_losses() -> None:
    rows = {}
    for sign in ("positive", "negative"):
        problems = [random_problem(seed, states=20, sign=sign) for seed in range(8)]
        law, found = length_preference(problems, sign, 6)
        assert law.holds
        assert law.cases > 0
        rows[sign] = {row.gamma_token: row for row in found}
        assert rows[sign][1.0].rate == 0
        assert rows[sign][0.99].rate < rows[sign][0.9].rate < rows[sign][0.5].rate
    gains, losses = rows["positive"][0.8], rows["negative"][0.8]
    assert gains.greedy_length < gains.optimal_length
    assert losses.greedy_length > losses.optimal_length
    assert gains.shares[0] < gains.shares[5]
    assert losses.shares[0] > losses.shares[5]


def test_without_matplotlib_the_numbers_are_still_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert main(["verify", *SMALL, "--out", str(tmp_path)]) == 0
    assert "No figure: " in capsys.readouterr().out
    assert [path.name for path in tmp_path.iterdir()] == ["verify.json"]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--states", "0"), "--states 0: must be at least 1"),
        (("--actions", "1"), "--actions 1: must be at least 2"),
        (("--depth", "0"), "--depth 0"),
        (("--depth", "1200"), "--depth 1200: must be at most 500"),
        (("--problems", "0"), "--problems 0"),
        (("--seed", "-1"), "--seed -1: must not be negative"),
        (("--out", __file__), "Name a directory"),
        (("--tokens", "3"), "--tokens"),
    ],
)
def test_wrong_flags_are_rejected(
    flags: tuple[str, str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    try:
        status = main(["verify", "--out", str(tmp_path / "none"), *flags])
    except SystemExit as stopped:
        status = stopped.code
    assert status == 2
    assert message in " ".join(capsys.readouterr().err.split())
    assert not (tmp_path / "none" / "verify.json").exists()
