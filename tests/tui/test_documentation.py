"""The documents on the screen: listed, searched, read, followed, and at hand behind the help."""

from __future__ import annotations

from rich.cells import cell_len

from meshctl import manual
from meshctl.tui.markdown import lay_out
from meshctl.tui.pager import plain
from tests.tui.conftest import Open

SAMPLE = """# A title

One paragraph with `code` and **weight** and a [link](other.md#part) that goes on
over two lines.

- first item that is rather long and has to be broken somewhere
- second

| name | what |
|---|---|
| `a` | short |
| b | a cell with many words that does not fit into what is left of the line |

    indented   code stays as it is, however long it may be

```
fenced
```
"""


def test_markdown_is_laid_out_within_the_width() -> None:
    laid = lay_out(SAMPLE, 40)
    lines = [plain(line).rstrip() for line in laid.lines]
    assert lines[0] == "A title"
    assert laid.lines[0][0][1] == "title"
    assert lines[2] == "One paragraph with code and weight and a"
    assert "- first item that is rather long and has" in lines
    assert "  to be broken somewhere" in lines
    assert "    indented   code stays as it is, however long it may be" in lines
    assert "    fenced" in lines
    assert not any("|" in line or "`" in line or "**" in line for line in lines)
    prose = [line for line in lines if not line.startswith("    ")]
    assert max(cell_len(line) for line in prose) <= 40
    assert ("code", "busy") in laid.lines[2]
    assert lines[laid.place(10)].startswith("a ")


def test_every_page_can_be_laid_out_at_every_width() -> None:
    for page in manual.pages():
        if page.name in {"cli", "settings"}:
            continue
        for width in (30, 76):
            laid = lay_out(page.text, width)
            assert laid.lines, page.name
            for number, _, text in page.headings():
                assert plain(laid.lines[laid.place(number)]) == text, page.name


async def test_pages_are_listed_searched_and_read(visit: Open) -> None:
    async with visit("documentation") as at:
        await at.sees("PAGE", "architecture", "Architecture", "pages")
        await at.type("/white-label")
        await at.sees("lines hold: white-label", "licence")
        await at.press("enter")
        await at.press("enter")
        await at.sees("Documentation › licence", "white-label")
        await at.press("escape")  # the search
        await at.press("escape")  # the page
        await at.sees("lines hold")
        await at.press("escape")
        await at.sees("architecture")
        await at.type(":docs failover")
        await at.press("enter")
        await at.sees("Documentation › failover", "Failover, return, and the journal of both")
        await at.press("t")
        await at.sees("Contents")
        await at.press("down", "enter")
        heading = manual.page("failover").headings()[1][2]
        await at.until(lambda: at.text().splitlines()[2].strip() == heading, "the second heading")
        await at.type(":docs nowhere")
        await at.press("enter")
        await at.told('There is no page "nowhere".')


async def test_a_link_is_followed_and_left_again(visit: Open) -> None:
    async with visit("documentation", size=(120, 40)) as at:
        await at.sees("openai")
        await at.type(":docs openai")
        await at.press("enter")
        await at.sees("Documentation › openai")
        await at.press("f")
        await at.sees("Links", "minigate")
        links = [one for one in manual.page("openai").links() if one.page != "openai"]
        at_minigate = next(n for n, one in enumerate(links) if one.page == "minigate")
        await at.press(*["down"] * at_minigate, "enter")
        await at.sees("Documentation › openai › minigate")
        await at.press("escape")
        await at.sees("Documentation › openai", "OpenAI's API")


async def test_the_help_leads_to_the_page_of_the_section_and_back(visit: Open) -> None:
    async with visit("settings") as at:
        await at.sees("failover.mode")
        await at.press("question_mark")
        await at.sees("Read about it: settings.md")
        await at.press("K")
        await at.sees("Advanced settings › settings", "In the database")
        await at.press("escape")
        await at.sees("failover.mode")
