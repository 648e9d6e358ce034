# SPDX-License-Identifier: Apache-2.0
"""The multimodal processor behind vLLM's own renderer, without an engine."""

from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn
from vllm import ModelRegistry
from vllm.config import ModelConfig, VllmConfig
from vllm.model_executor.model_loader.utils import _MODEL_ARCH_BY_HASH
from vllm.model_executor.models.interfaces import SupportsMultiModal
from vllm.multimodal import MULTIMODAL_REGISTRY
from vllm.multimodal.media.image import ImageMediaIO
from vllm.renderers.base import BaseRenderer
from vllm.renderers.params import ChatParams
from vllm.renderers.registry import renderer_from_config

from tests.golden.cases import IMAGE_TOKEN, GoldenCase, load_cases
from vllm_lladav.model.lladav.family import LLADAV
from vllm_lladav.model.lladav.image_modes import IMAGE_MODES
from vllm_lladav.model.lladav.processing import (
    ImageOptions,
    LladavDataParser,
    LladavDummyInputsBuilder,
    LladavMultiModalProcessor,
    LladavProcessingInfo,
)
from vllm_lladav.plugin import register

IMAGE_TOKEN_ID = 126349
BOS = 126080
QUESTION = "<|startoftext|><image>\nWhat is it?"


@MULTIMODAL_REGISTRY.register_processor(
    LladavMultiModalProcessor,
    info=LladavProcessingInfo,
    dummy_inputs=LladavDummyInputsBuilder,
)
class ModelWithoutLayers(nn.Module, SupportsMultiModal):
    """Enough of a model for vLLM to find its processor."""

    def __init__(self, *, vllm_config, prefix=""):
        super().__init__()

    @classmethod
    def get_placeholder_str(cls, modality, i):
        return "<image>"

    def embed_input_ids(self, input_ids, *args, **kwargs):
        raise NotImplementedError

    def embed_multimodal(self, **kwargs):
        raise NotImplementedError

    def forward(self, input_ids, positions, *args, **kwargs):
        raise NotImplementedError

    def compute_logits(self, hidden_states):
        raise NotImplementedError


@pytest.fixture(scope="module")
def make_renderer(tiny_checkpoint: Path):
    register()
    before = ModelRegistry.models[LLADAV.architecture]
    ModelRegistry.register_model(LLADAV.architecture, ModelWithoutLayers)

    def make(**kwargs) -> BaseRenderer:
        model_config = ModelConfig(
            model=str(tiny_checkpoint), dtype="float32", max_model_len=8192, **kwargs
        )
        return renderer_from_config(VllmConfig(model_config=model_config))

    yield make
    ModelRegistry.models[LLADAV.architecture] = before
    # Engines of the same checkpoint would get this model.
    _MODEL_ARCH_BY_HASH.clear()


@pytest.fixture(scope="module")
def renderer(make_renderer) -> BaseRenderer:
    return make_renderer()


@pytest.fixture
def picture() -> Image.Image:
    noise = np.random.default_rng(0).integers(0, 256, (90, 120, 3), dtype=np.uint8)
    return Image.fromarray(noise)


def complete(renderer: BaseRenderer, prompt, images=(), **kwargs):
    """A completion request up to the engine's door."""
    key = "prompt" if isinstance(prompt, str) else "prompt_token_ids"
    request: dict = {key: prompt}
    if images:
        request["multi_modal_data"] = {"image": list(images)}
        request["mm_processor_kwargs"] = kwargs
    return renderer.render_cmpl([request])[0]


def chat(renderer: BaseRenderer, messages, template=None, **kwargs):
    params = ChatParams(
        chat_template=template,
        chat_template_kwargs={"add_generation_prompt": True, "tokenize": False},
    )
    extras = {"mm_processor_kwargs": kwargs} if kwargs else None
    _, (found,) = renderer.render_chat([messages], params, prompt_extras=extras)
    return found


def lengths(found) -> list[int]:
    return [place.length for place in found["mm_placeholders"]["image"]]


def merged_ids(case: GoldenCase) -> list[int]:
    counts = iter(case.visual_tokens)
    return [
        out
        for token in case.input_ids
        for out in (
            [IMAGE_TOKEN_ID] * next(counts) if token == IMAGE_TOKEN else [token]
        )
    ]


CASES = list(load_cases().values())


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_prompts_equal_the_official_ones(case: GoldenCase, renderer: BaseRenderer):
    images = [Image.open(path) for path in case.image_paths]
    found = complete(renderer, case.prompt, images, image_mode=case.image_mode)
    assert found["prompt_token_ids"] == merged_ids(case)
    if images:
        places = found["mm_placeholders"]["image"]
        spans = tuple((p.offset, p.offset + p.length) for p in places)
        assert spans == case.visual_spans


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_chat_equals_the_official_prompt(case: GoldenCase, renderer: BaseRenderer):
    """Through the default template, images as content parts."""
    (text,) = case.messages
    in_sentence = case.name == "img_mid_text"
    question = text if in_sentence else text.rpartition("<image>")[2].strip()
    images = [
        {"type": "image_pil", "image_pil": Image.open(path)}
        for path in case.image_paths
    ]
    content = [*images, {"type": "text", "text": question}] if images else text
    kwargs = {"image_mode": case.image_mode} if images else {}
    found = chat(renderer, [{"role": "user", "content": content}], **kwargs)
    assert found["prompt_token_ids"] == merged_ids(case)


def test_explicit_template_wins(renderer: BaseRenderer):
    found = chat(renderer, [{"role": "user", "content": "Hi"}], template="{{ 'abc' }}")
    assert found["prompt"] == "abc"


def test_auto_follows_the_number_of_images(renderer: BaseRenderer, picture):
    two = "<|startoftext|><image> <image>\nCompare."
    assert lengths(complete(renderer, QUESTION, [picture])) == [1317]
    # The same picture, cached in another mode just before.
    assert lengths(complete(renderer, two, [picture, picture])) == [729, 729]
    forced = complete(renderer, two, [picture, picture], image_mode="anyres")
    assert lengths(forced) == [1317, 1317]


def test_the_mode_is_part_of_the_identity(renderer: BaseRenderer, picture):
    def hash_in(mode: str) -> str:
        found = complete(renderer, QUESTION, [picture], image_mode=mode)
        return found["mm_hashes"]["image"][0]

    assert len({hash_in(mode) for mode in IMAGE_MODES}) == 3
    assert hash_in("auto") == hash_in("anyres")


def test_the_same_image_twice_is_encoded_once(renderer: BaseRenderer, picture):
    prompt = "<|startoftext|><image><image>Compare."
    hashes = complete(renderer, prompt, [picture, picture])["mm_hashes"]["image"]
    assert hashes[0] == hashes[1]


def test_keeping_the_token_is_not(renderer: BaseRenderer, picture):
    """It changes the prompt, not the image."""
    lost = complete(renderer, QUESTION, [picture])
    kept = complete(renderer, QUESTION, [picture], keep_token_after_image=True)
    assert kept["mm_hashes"] == lost["mm_hashes"]
    newline, *rest = kept["prompt_token_ids"][1 + 1317 :]
    assert renderer.get_tokenizer().decode([newline]) == "\n"
    assert lost["prompt_token_ids"][1 + 1317 :] == rest


def test_no_token_is_lost_without_bos(renderer: BaseRenderer, picture):
    found = complete(renderer, QUESTION.removeprefix("<|startoftext|>"), [picture])
    tail = renderer.get_tokenizer().decode(found["prompt_token_ids"][1317:])
    assert tail == "\nWhat is it?"


def test_token_prompts_stay_as_they_are(renderer: BaseRenderer, picture):
    found = complete(renderer, [BOS, IMAGE_TOKEN_ID, 10, 65], [picture])
    assert found["prompt_token_ids"] == [BOS, *[IMAGE_TOKEN_ID] * 1317, 10, 65]
    renderer.validate_token_ids(found["prompt_token_ids"])  # as the engine will


@pytest.mark.parametrize("marks", [0, 2])
def test_marks_must_match_the_images(renderer: BaseRenderer, picture, marks: int):
    error = f"{marks} <image> mark.* for 1 image"
    with pytest.raises(ValueError, match=error):
        complete(renderer, "<|startoftext|>" + "<image>" * marks, [picture])
    with pytest.raises(ValueError, match=error):
        complete(renderer, [BOS, *[IMAGE_TOKEN_ID] * marks], [picture])


@pytest.mark.parametrize(
    ("kwargs", "error"),
    [
        ({"image_mode": "tiles"}, "image_mode='tiles'.*auto, anyres, pad_stacked"),
        ({"image_mode": None}, "image_mode=None"),
        ({"keep_token_after_image": 1}, "keep_token_after_image=1"),
        ({"do_resize": True}, "unknown key 'do_resize'; allowed: image_mode"),
    ],
)
def test_wrong_options_are_refused(renderer, make_renderer, picture, kwargs, error):
    with pytest.raises(ValueError, match=error):
        complete(renderer, QUESTION, [picture], **kwargs)
    with pytest.raises(ValueError, match=error):
        make_renderer(mm_processor_kwargs=kwargs)


def test_server_wide_mode_is_a_default(make_renderer, picture):
    renderer = make_renderer(mm_processor_kwargs={"image_mode": "pad_list"})
    assert lengths(complete(renderer, QUESTION, [picture])) == [730]
    found = complete(renderer, QUESTION, [picture], image_mode="anyres")
    assert lengths(found) == [1317]


def test_pad_checkpoints_have_no_anyres(make_renderer, picture):
    renderer = make_renderer(hf_overrides={"image_aspect_ratio": "pad"})
    assert lengths(complete(renderer, QUESTION, [picture])) == [729]
    with pytest.raises(ValueError, match="image_aspect_ratio .*'pad'"):
        complete(renderer, QUESTION, [picture], image_mode="anyres")
    assert renderer.mm_processor.info.get_mm_max_tokens_per_item(8192, {}) == {
        "image": 730
    }


@pytest.mark.parametrize("mode", ["auto", *IMAGE_MODES])
def test_profiling_uses_the_largest_image(make_renderer, mode):
    renderer = make_renderer(mm_processor_kwargs={"image_mode": mode})
    processor = renderer.mm_processor
    dummy = processor.get_dummy_mm_inputs({"image": 1})
    assert lengths(dummy) == [4341]
    assert processor.info.get_mm_max_tokens_per_item(8192, {"image": 1}) == {
        "image": 4341
    }


def test_fields_of_an_item(make_renderer, picture):
    found = complete(make_renderer(), QUESTION, [picture], image_mode="pad_list")
    item = found["mm_kwargs"]["image"][0].get_data()
    assert item["pixel_values"].shape == (1, 3, 384, 384)
    assert item["image_sizes"].tolist() == [120, 90]
    assert item["image_modes"].item() == IMAGE_MODES.index("pad_list")


# --- image sources ---------------------------------------------------------------


def read(item) -> Image.Image:
    return LladavDataParser().parse_mm_data({"image": [item]})["image"].get(0)


def loaded_by_vllm(image: Image.Image, **save) -> object:
    buffer = BytesIO()
    image.save(buffer, format="PNG", **save)
    return ImageMediaIO().load_bytes(buffer.getvalue())


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P", "L", "I;16"])
def test_images_are_read_as_pil_converts_them(picture, mode):
    """The colour of transparent pixels counts, not a white background."""
    stored = picture.convert(mode if mode != "I;16" else "I").convert(mode)
    if mode == "RGBA":
        stored.putalpha(100)
    expected = stored.convert("RGB")
    assert read(stored) == expected
    assert read(loaded_by_vllm(stored)) == expected


def test_exif_orientation_is_ignored(picture):
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by 90 degrees
    item = loaded_by_vllm(picture, exif=exif)
    assert item.media.size == (90, 120)  # vLLM turns it
    assert read(item).tobytes() == picture.tobytes()


def test_chosen_background_is_respected(picture):
    picture.putalpha(0)
    buffer = BytesIO()
    picture.save(buffer, format="PNG")
    blue = ImageMediaIO(rgba_background_color=(0, 0, 255))
    found = read(blue.load_bytes(buffer.getvalue()))
    assert found.getpixel((0, 0)) == (0, 0, 255)


def test_arrays(picture):
    array = np.asarray(picture)
    assert read(array) == picture
    assert read(array.transpose(2, 0, 1)) == picture
    assert read(torch.from_numpy(array.copy()).permute(2, 0, 1)) == picture
    assert read(array.astype(np.float32) / 255) == picture
    for wrong in (array[..., :2], array.astype(np.float32)):
        with pytest.raises(ValueError, match="image array of"):
            read(wrong)


def test_broken_file_is_refused(picture):
    buffer = BytesIO()
    picture.save(buffer, format="PNG")
    truncated = BytesIO(buffer.getvalue()[:3000])
    with pytest.raises(ValueError, match="image cannot be read"):
        read(Image.open(truncated))


def test_options_have_defaults():
    assert ImageOptions.from_kwargs({}) == ImageOptions("auto", False)


def test_given_embeddings_need_one_place_per_row(make_renderer):
    renderer = make_renderer(enable_mm_embeds=True)
    request = {
        "prompt": QUESTION,
        "multi_modal_data": {"image": torch.ones(1, 5, 128)},
    }
    assert lengths(renderer.render_cmpl([request])[0]) == [5]
