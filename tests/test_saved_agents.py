"""Every agent in ``agents/`` opens in plain Stable-Baselines3 and without it, and is complete."""

import base64
import csv
import re
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch

from coordrl.agents import Agent, AgentCard, load_agent
from coordrl.agents.agent import STOCK_ALGORITHMS
from coordrl.agents.network import stored_state

AGENTS = Path(__file__).parent.parent / "agents"
FOLDERS = sorted(card.parent for card in AGENTS.glob("*/card.json"))
pytestmark = pytest.mark.skipif(not FOLDERS, reason="an archive of sources comes without agents")
EVERY_AGENT = pytest.mark.parametrize("folder", FOLDERS, ids=[path.name for path in FOLDERS])


def card_of(folder: Path) -> AgentCard:
    card = load_agent(folder).card
    assert card is not None
    return card


def test_pong_comes_with_and_without_coordinates() -> None:
    cards = [card_of(folder) for folder in FOLDERS]
    assert {card.coords for card in cards if card.game == "Pong"} >= {"all", "none"}


@EVERY_AGENT
def test_opens_both_ways_as_the_same_agent(folder: Path) -> None:
    safe = load_agent(folder)
    assert safe.card is not None
    plain = STOCK_ALGORITHMS[safe.algorithm].load(folder / "agent.zip", device="cpu")

    from_folder, from_zip = stored_state(safe.policy), stored_state(Agent.of(plain).policy)
    assert from_folder.keys() == from_zip.keys()
    for name, tensor in from_folder.items():
        assert torch.equal(tensor, from_zip[name]), name
    shape = safe.card.network.observation_shape
    obs = np.random.default_rng(0).integers(0, 256, (8, *shape), np.uint8)
    actions, _ = plain.predict(obs, deterministic=True)
    chosen = safe.act(obs, deterministic=True, random=torch.Generator())
    assert chosen.tolist() == actions.tolist()


@EVERY_AGENT
def test_card_is_complete(folder: Path) -> None:
    card = card_of(folder)

    assert folder.name == card.name
    assert card.settings["run"]["seed"] == card.seed
    assert card.settings["extractor"].get("coords", "all") == card.coords  # policy_kwargs' default
    assert card.frames == card.agent_steps * card.env.frame_skip > 0
    assert {"python", "torch", "stable-baselines3", "ale-py", "numpy"} <= card.versions.keys()
    by_policy = {result.deterministic: result for result in card.evaluations}
    assert set(by_policy) == {False, True}
    for result in card.evaluations:
        assert result.game == card.game
        assert result.episodes >= 100
        assert not result.settings.clip_reward


@EVERY_AGENT
def test_learning_curve_is_there(folder: Path) -> None:
    assert (folder / "learning_curve.png").read_bytes().startswith(b"\x89PNG")
    with (folder / "learning_curve.csv").open(newline="") as file:
        steps = [int(row["agent_steps"]) for row in csv.DictReader(file)]
    assert len(steps) > 10
    assert steps == sorted(set(steps))
    assert steps[-1] <= card_of(folder).agent_steps


@EVERY_AGENT
def test_nothing_of_the_machine_it_was_trained_on_is_left(folder: Path) -> None:
    with zipfile.ZipFile(folder / "agent.zip") as archive:
        assert archive.testzip() is None
        data = archive.read("data")
    pickled = re.findall(rb'":serialized:": "([^"]+)"', data)
    assert pickled
    card = (folder / "card.json").read_bytes()
    for content in (data, card, *map(base64.b64decode, pickled)):
        assert not re.search(rb"/(home|root|work|tmp|Users)/", content)
