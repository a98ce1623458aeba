import re
from html.parser import HTMLParser

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from patchsae.disk.runs import Run
from patchsae.report import Row, Section, Tile, build, images, plots
from tests.examples import examples

NASTY = "<script>alert(\"1\")</script> & 'x' <img src=http://evil.example/a.png> </svg></style> {{ 7 * 7 }}"
RESOURCES = {"src", "href", "xlink:href", "srcset", "poster", "data", "action"}


class Page(HTMLParser):
    """Tags, attributes and text of a document."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.attributes, self.texts = [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.attributes += [(tag, name, value) for name, value in attributes]

    def handle_data(self, text):
        self.texts.append(text)

    def values(self, name):
        return [value for _, attribute, value in self.attributes if attribute == name]


def picture():
    return Image.fromarray(np.arange(48, dtype=np.uint8).reshape(4, 4, 3))


def full_section(text):
    """Every element there is, `text` wherever text goes."""
    section = Section(text, lead=text)
    section.heading(text)
    section.text(text)
    section.code(text)
    section.facts({text: text, "latents": 49152})
    section.figure(plots.class_dots([text], {text: [0.5]}, text), text)
    section.figure(plots.sweep_curves([1, 10], {text: [0.1, 0.2]}, {}, 0.5), text, alt=text)
    section.figure(picture(), text)
    section.table({text: [text, None], "x": np.array([0.5, np.nan])}, text)
    section.gallery([(picture(), text)], text)
    section.galleries([Row(text, {text: text}, [Tile(picture(), text, picture())]), Row(text, note=text)], shown=1)
    inner = Section(text)
    inner.text(text)
    section.details(text, inner)
    return section


def report(root, sections, config=None, finished=True):
    """The page of a run with these sections, by the names of their stages."""
    run = Run(root)
    for name, section in sections.items():
        with run.stage(name) as stage:
            stage.begin(config or {"lr": 4e-4}, overwrite=True)
            section.write(stage)
            if finished:
                stage.finish()
    path = build(run)
    assert path == run.root / "report.html"
    return Page(path.read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    root = tmp_path_factory.mktemp("runs") / "demo <1>"
    return report(root, {"train": full_section(NASTY), "mask": full_section(NASTY)}, config={"images": NASTY})


def test_nothing_is_loaded_from_anywhere(page):
    resources = [value for _, name, value in page.attributes if name in RESOURCES]
    assert resources
    assert all(value.startswith(("data:image/", "#")) for value in resources)
    urls = [url for _, _, value in page.attributes for url in re.findall(r"url\(([^)]*)\)", value or "")]
    assert urls
    assert all(url.startswith("#") for url in urls)
    style = "".join(text for text in page.texts if "--paper" in text)
    assert not re.search(r"https?:|@import|url\(", style)
    assert not {"script", "link", "iframe", "object"} & set(page.tags)
    assert "default-src 'none'; img-src data:; style-src 'unsafe-inline'" in page.values("content")


def test_no_text_becomes_markup(page, tmp_path):
    plain = report(tmp_path / "demo", {"train": full_section("word"), "mask": full_section("word")})
    assert page.tags == plain.tags
    shown = "".join(page.texts)
    shortened = plain.tags.count("title") - 1  # names in plots, which are whole in their titles alone
    assert shortened > 5
    assert plain.texts.count("word") > 20
    assert shown.count(NASTY) >= plain.texts.count("word") - shortened


@examples(15)
@given(st.text(st.characters(exclude_categories=["Cs", "Cc"]), min_size=1, max_size=20))
def test_any_text_is_shown_as_it_is(text):
    section = Section(text)
    section.facts({"name": text})
    section.table({text: [text]}, text)
    parsed = Page(section.html)
    assert parsed.tags == Page(_benign(section)).tags
    assert parsed.texts.count(text) == 4


def _benign(_):
    section = Section("word")
    section.facts({"name": "word"})
    section.table({"word": ["word"]}, "word")
    return section.html


def test_every_picture_says_what_it_shows(page):
    images_ = page.tags.count("img")
    assert images_ > 0
    assert len([value for tag, name, value in page.attributes if (tag, name) == ("img", "alt") and value]) == images_
    assert len([value for value in page.values("aria-label") if value]) >= page.tags.count("svg") > 0


def test_ids_are_unique_and_links_lead_somewhere(page):
    ids = page.values("id")
    assert len(ids) == len(set(ids))
    links = [value[1:] for name in ("href", "xlink:href") for value in page.values(name) if value.startswith("#")]
    assert set(links) <= set(ids)
    assert {"train", "train:1", "mask", "mask:1"} <= set(links)


def test_two_runs_of_a_verb_have_ids_and_titles_of_their_own(tmp_path):
    """Also where one's name is what a heading of the other might be called."""
    names = ("extract", "extract-1", "extract-2", "train")
    titles = dict.fromkeys(names, "Latents") | {"train": "Training"}
    page = report(tmp_path / "demo", {name: headed(titles[name]) for name in names})
    ids = page.values("id")
    assert len(ids) == len(set(ids))
    links = [value[1:] for value in page.values("href")]
    assert links == [anchor for name in ("train", *names[:3]) for anchor in (name, f"{name}:1", f"{name}:2")]
    assert set(links) == set(ids)
    shown = [text for text in page.texts if text.startswith(("Latents", "Training"))]
    assert shown == 2 * ["Training", "Latents (extract)", "Latents (extract-1)", "Latents (extract-2)"]


def headed(title):
    section = Section(title)
    section.heading("First")
    section.heading("Second")
    return section


def test_a_section_of_an_earlier_version_gets_ids_of_its_own_too(tmp_path):
    run = Run(tmp_path / "demo")
    for name in ("extract", "extract-2"):
        with run.stage(name) as stage:
            stage.begin({}, overwrite=True)
            content = {"headings": [("extract-1", "Images")], "html": '<h3 id="extract-1">Images</h3>'}
            stage.save_json("section", {"title": "Latents", **content})
            stage.finish()
    page = Page(build(run).read_text(encoding="utf-8"))
    assert page.values("id") == ["extract", "extract:1", "extract-2", "extract-2:1"]


def test_a_byte_that_is_no_text_does_not_stop_the_report(tmp_path):
    name = b"caf\xe9.png".decode(errors="surrogateescape")
    page = report(tmp_path / "demo", {"train": full_section(name)})
    assert "caf\ufffd.png" in page.texts


@pytest.mark.parametrize("values", [["12.5%", "–"], ["1.00 / -2.50", "3"], [1.5, None], np.array([1, 2])])
def test_numbers_stand_right_whether_or_not_they_are_text(values):
    section = Section("train")
    section.table({"x": values}, "x")
    assert section.html.count('class="number"') == 3


def test_markup_is_balanced(page, tmp_path):
    text = report_text(tmp_path)
    for tag in ("section", "figure", "details", "article", "table", "svg", "div", "dl", "nav", "main"):
        assert len(re.findall(rf"<{tag}[ >]", text)) == text.count(f"</{tag}>"), tag


def report_text(tmp_path):
    report(tmp_path / "demo", {"train": full_section("word")})
    return (tmp_path / "demo" / "report.html").read_text(encoding="utf-8")


def test_stages_come_in_the_order_of_the_experiment(tmp_path):
    names = ["zoo", "table", "compare-test", "compare", "extract", "train"]
    page = report(tmp_path / "demo", {name: Section(f"Title {name}") for name in names})
    titles = [text for text in page.texts if text.startswith("Title ")]
    ordered = ("train", "extract", "compare", "compare-test", "table", "zoo")
    assert titles[: len(ordered)] == [f"Title {name}" for name in ordered]


def test_settings_are_shown_as_written_and_unfinished_stages_say_so(tmp_path):
    section = Section("Training")
    page = report(
        tmp_path / "demo", {"train": section}, config={"steps": 2621440, "model": {"lr": 4e-4}}, finished=False
    )
    assert {"2621440", "model.lr", "0.0004"} <= set(page.texts)
    assert any("has not finished" in text for text in page.texts)
    assert not any("has not finished" in text for text in report(tmp_path / "demo", {"train": section}).texts)


def test_the_same_run_gives_the_same_report(tmp_path):
    first = report_text(tmp_path)
    build(Run(tmp_path / "demo"))
    assert (tmp_path / "demo" / "report.html").read_text(encoding="utf-8") == first


def test_a_run_without_stages_and_a_report_of_somebody_else(tmp_path):
    assert "No stage has run yet." in build(Run(tmp_path / "new")).read_text()
    other = tmp_path / "other" / "report.html"
    other.parent.mkdir()
    other.write_text("<html>mine</html>")
    with pytest.raises(FileExistsError, match=r"report\.html was not written by patchsae"):
        build(Run(tmp_path / "other"))
    assert other.read_text() == "<html>mine</html>"


def test_sixty_latents_with_ten_reference_images_stay_under_ten_megabytes(tmp_path):
    rng = np.random.default_rng(0)
    section = Section("Latents")
    rows = []
    for latent in range(6):
        tiles = []
        for _ in range(10):
            # as busy as photographs get: noise on every scale
            fine = rng.integers(0, 256, (224, 224, 3)) * 0.3
            coarse = Image.fromarray(rng.integers(0, 256, (9, 9, 3), np.uint8)).resize((224, 224))
            image = Image.fromarray((fine + 0.7 * np.asarray(coarse)).astype(np.uint8))
            tiles.append(Tile(image, "n01440764 · 0.51", images.overlay(image, rng.random((14, 14)), 1.0)))
        rows.append(Row(f"Latent {latent}", {"frequency": 0.01}, tiles))
    section.galleries(rows)
    report(tmp_path / "demo", {"extract": section})
    assert (tmp_path / "demo" / "report.html").stat().st_size < 10e6 * 6 / 60
