"""What a pool shows: bounded, harmless on a terminal, readable; and the product's name beside it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qgate.governance.branding import (
    COLOURS,
    LOGO_HEIGHT,
    LOGO_WIDTH,
    Branding,
    BrandingError,
    cells,
    contrast,
    contrasts,
)
from qgate.governance.licence import Licences
from qgate.governance.problems import ChangedError, ConflictError
from qgate.governance.showing import Showing
from tests.qgate.gates import control, gate_settings, make_directory, running
from tests.qgate.licences import licence, trusting
from tests.qgate.pool import BY, DAY, Pool


@pytest.fixture
async def showing(pool: Pool) -> Showing:
    await trusting(pool)
    return Showing(pool.office, Licences(pool.office, pool=pool.identity.verify_key))


def test_contrast_is_that_of_wcag() -> None:
    assert contrast("#000000", "#ffffff") == pytest.approx(21)
    assert contrast("#777777", "#ffffff") == pytest.approx(4.478, abs=0.001)
    assert contrast("#123456", "#123456") == 1


def test_the_product_s_own_colours_can_be_read() -> None:
    assert all(pair["ok"] for pair in contrasts(COLOURS))


def test_wide_characters_take_two_cells() -> None:
    assert [cells(text) for text in ("abc", "界", "Ａ", "é")] == [3, 2, 2, 1]


@pytest.mark.parametrize(
    "text",
    [
        "\x1b[31mred",
        "a\tb",
        "a\x00",
        "\x9b2J",
        "a\u202egpj.exe",
        "a\u200bb",
        "\ufeffa",
        "a\u0336b",
        "\ue000",
        "a\u2028b",
        "a\nb",
        "\ud800",
    ],
)
@pytest.mark.parametrize("name", ["name", "support", "logo"])
def test_what_does_more_than_be_shown_is_refused(text: str, name: str) -> None:
    value = [f"x{text}y"] if name == "logo" else f"x{text}y"
    with pytest.raises(BrandingError) as refused:
        Branding.from_json({name: value})
    assert refused.value.field == name
    assert refused.value.message.isprintable()


def test_a_logo_has_bounds() -> None:
    whole = ["#" * LOGO_WIDTH] * LOGO_HEIGHT
    assert Branding.from_json({"logo": whole}).logo == tuple(whole)
    assert Branding.from_json({"logo": ["", "", *whole, "  "]}).logo == tuple(whole)
    assert Branding.from_json({"logo": " /\\ \n/  \\"}).logo == (" /\\", "/  \\")
    for wrong in (["#" * 61], ["#"] * 13, ["界" * 31], ["#"] * 10**5):
        with pytest.raises(BrandingError, match="60 by 12 cells"):
            Branding.from_json({"logo": wrong})


@pytest.mark.parametrize(
    "document",
    [
        {"colours": {"primary": "red"}},
        {"colours": {"primary": "#12345"}},
        {"colours": {"primary": 0}},
        {"colours": {"pink": "#ff00ff"}},
        {"colours": ["#ff00ff"]},
        {"name": 5},
        {"name": "x" * 41},
        {"support": "x" * 121},
        {"logo": 5},
        {"logo": [5]},
        {"white_label": "yes"},
        {"script": "x"},
    ],
)
def test_what_is_no_branding_is_refused(document: dict[str, Any]) -> None:
    with pytest.raises(BrandingError):
        Branding.from_json(document)


def test_text_that_could_not_be_read_is_refused() -> None:
    with pytest.raises(BrandingError, match=r"foreground on background has a contrast of 1\."):
        Branding.from_json({"colours": {"foreground": "#101010"}})
    with pytest.raises(BrandingError, match="error on background"):
        Branding.from_json({"colours": {"error": "#300000"}})
    light = {
        "background": "#FFFFFF",
        "surface": "#f0f0f0",
        "foreground": "#101010",
        **dict.fromkeys(("primary", "secondary", "accent", "success", "warning", "error"), "#404040"),
    }
    assert Branding.from_json({"colours": light}).theme["background"] == "#ffffff"


@given(st.text(max_size=50))
def test_whatever_is_taken_is_shown_as_it_is(text: str) -> None:
    try:
        name = Branding.from_json({"name": text}).name
    except BrandingError:
        return
    assert name.isprintable()
    assert Branding.from_json({"name": name}).name == name


async def test_it_is_set_shown_and_reset(pool: Pool, showing: Showing) -> None:
    plain = await showing.show()
    assert (plain["title"], plain["theme"], plain["version"]) == ("qgate-mesh", dict(COLOURS), 0)
    set_ = await showing.set({"name": "Example AI", "support": "help@example.org"}, expected=0, by="alice")
    assert set_["title"] == "Example AI (qgate-mesh)"
    more = await showing.set({"colours": {"primary": "#80c0ff"}}, by=BY)
    assert (more["name"], more["theme"]["primary"]) == ("Example AI", "#80c0ff")
    with pytest.raises(ChangedError, match=BY):
        await showing.set({"name": "x"}, expected=set_["version"], by="bob")
    assert (await showing.reset(by=BY))["title"] == "qgate-mesh"
    assert [one for one in await pool.told() if one[0].startswith("branding")] == [
        ("branding.set", "Example AI"),
        ("branding.set", "Example AI"),
        ("branding.reset", "Example AI"),
    ]


async def test_a_preview_keeps_nothing(showing: Showing) -> None:
    seen = await showing.preview({"name": "Example"})
    assert seen["title"] == "Example (qgate-mesh)"
    assert all(pair["ok"] for pair in seen["contrasts"])
    assert (await showing.show())["name"] == ""
    with pytest.raises(BrandingError):
        await showing.preview({"colours": {"foreground": "#000000"}})


async def test_the_product_s_name_goes_under_a_licence_only(pool: Pool, showing: Showing) -> None:
    with pytest.raises(ConflictError, match="white-label"):
        await showing.set({"name": "Example AI", "white_label": True}, by=BY)
    licences = Licences(pool.office, pool=pool.identity.verify_key)
    await licences.install(licence(pool.clock.now, ends=10), by=BY)
    shown = await showing.set({"name": "Example AI", "white_label": True}, by=BY)
    assert shown["title"] == "Example AI"
    pool.clock.now += 25 * DAY
    ended = await showing.show()
    assert (ended["title"], ended["white_label"], ended["white_label_in_force"]) == (
        "Example AI (qgate-mesh)",
        True,
        False,
    )


async def test_over_the_control_api(tmp_path: Path, store_dsn: str) -> None:
    settings = gate_settings(tmp_path, store_dsn)
    make_directory(tmp_path, settings)
    async with running(settings) as gate, control(gate) as client:
        done = await client.patch("/branding", json={"name": "Example AI", "logo": ["*"]})
        assert (done.status_code, done.json()["logo"]) == (200, ["*"])
        refused = await client.patch("/branding", json={"name": "\x1b[2J"})
        assert (refused.status_code, refused.json()["code"]) == (422, "branding")
        stale = await client.patch("/branding", json={"name": "b"}, headers={"If-Match": '"1"'})
        assert stale.status_code == 412
        assert (await client.post("/branding/preview", json={"support": "x"})).status_code == 200
        assert (await client.get("/branding")).json()["name"] == "Example AI"
        assert (await client.delete("/branding")).json()["name"] == ""
