"""Noun phrases by spaCy: by a stand-in for it, and by itself where it is installed."""

import sys
import warnings
from types import ModuleType, SimpleNamespace

import pytest

from fiber.inference import noun_phrases
from fiber.inference.prompts import grounding_prompts


class Chunk(list):
    """A noun chunk, as spaCy gives it: its tokens, its text and its place."""

    def __init__(self, caption, text, pos):
        super().__init__([SimpleNamespace(pos_=pos)])
        self.text = text
        self.start_char = caption.index(text)
        self.end_char = self.start_char + len(text)


class Pipeline:
    """A pipeline that finds what it was told to, and no others."""

    def __init__(self, pipe_names, chunks=()):
        self.pipe_names = pipe_names
        self.chunks = chunks

    def __call__(self, caption):
        return SimpleNamespace(noun_chunks=[Chunk(caption, *chunk) for chunk in self.chunks])


@pytest.fixture
def spacy(monkeypatch):
    """A module in the place of spaCy, with the pipelines that a test puts into it."""
    module = ModuleType("spacy")
    module.pipelines, module.loaded = {}, []

    def load(name, exclude):
        assert exclude == ["ner", "lemmatizer"]
        module.loaded.append(name)
        return module.pipelines[name]

    module.load = load
    module.util = SimpleNamespace(get_installed_models=lambda: list(module.pipelines))
    monkeypatch.setitem(sys.modules, "spacy", module)
    noun_phrases.english_parser.cache_clear()
    yield module
    noun_phrases.english_parser.cache_clear()


def test_no_spacy(monkeypatch):
    # None in the table of modules makes the import fail.
    monkeypatch.setitem(sys.modules, "spacy", None)
    noun_phrases.english_parser.cache_clear()
    assert noun_phrases.english_parser() is None
    noun_phrases.english_parser.cache_clear()


def test_no_pipeline_for_english_with_a_parser(spacy):
    assert noun_phrases.english_parser() is None
    noun_phrases.english_parser.cache_clear()
    spacy.pipelines = {"de_core_news_sm": Pipeline(["parser"]), "en_tagger": Pipeline(["tagger"])}
    assert noun_phrases.english_parser() is None
    assert spacy.loaded == ["en_tagger"]


def test_the_best_pipeline_is_loaded_once(spacy):
    spacy.pipelines = {
        "en_core_other": Pipeline(["parser"]),
        "en_core_web_sm": Pipeline(["parser"]),
        "en_core_web_md": Pipeline(["tagger"]),
    }
    assert noun_phrases.english_parser() is spacy.pipelines["en_core_web_sm"]
    assert noun_phrases.english_parser() is noun_phrases.english_parser()
    assert spacy.loaded == ["en_core_web_md", "en_core_web_sm"]


def test_phrases_of_a_caption_are_the_chunks_that_name_things(spacy, fine):
    caption = "He saw a red dog to the left of its red star"
    chunks = [
        ("He", "PRON"),
        ("a red dog", "NOUN"),
        ("the left", "NOUN"),
        ("its red star", "NOUN"),
    ]
    spacy.pipelines = {"en_core_web_sm": Pipeline(["parser"], chunks)}
    found = noun_phrases.caption_phrases(caption)
    assert [caption[start:end] for start, end in found] == ["a red dog", "its red star"]
    # They stand where the parser saw them.
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "text .* maximum of 16 tokens")
        ((prompt,),) = grounding_prompts(None, caption, None, 1, fine._inputs)
    assert prompt.labels == ("a red dog", "its red star")
    assert prompt.spans == tuple((span,) for span in found)


def test_a_caption_without_chunks_is_an_error(spacy, fine):
    spacy.pipelines = {"en_core_web_sm": Pipeline(["parser"])}
    with pytest.raises(ValueError, match=r"caption 'running'.*phrase"):
        grounding_prompts(None, "running", None, 1, fine._inputs)


def test_spacy_itself():
    pytest.importorskip("spacy", reason="spaCy is not installed")
    noun_phrases.english_parser.cache_clear()
    if noun_phrases.english_parser() is None:
        pytest.skip("no English pipeline of spaCy is installed")
    caption = "A dog catches a frisbee to the left of two \u00e9clairs on a wooden table."
    spans = noun_phrases.caption_phrases(caption)
    assert [caption[start:end] for start, end in spans] == [
        "A dog",
        "a frisbee",
        "two \u00e9clairs",
        "a wooden table",
    ]
