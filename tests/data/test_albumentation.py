import os
import pickle
import random
import subprocess
import sys

import numpy as np
import pytest

from facelab.data.albumentation import Albumentations

SIDE = 24
# Every kind of randomness of the library: Python's generator, NumPy's, OpenCV's, generators made on the way.
VARIED = [
    {"GaussNoise": {"p": 1}},
    {"ISONoise": {"p": 1}},
    {"ShotNoise": {"p": 1}},
    {"AdditiveNoise": {"noise_type": "laplace", "spatial_mode": "per_pixel", "p": 1}},
    {"CoarseDropout": {"fill": "random", "p": 1}},
    {"ElasticTransform": {"p": 1}},
    {"GlassBlur": {"p": 1}},
    {"GridDistortion": {"p": 1}},
    {"ImageCompression": {"quality_range": [20, 60], "p": 1}},
    {"MotionBlur": {"p": 1}},
    {"PixelDropout": {"p": 1}},
    {"PlasmaShadow": {"p": 1}},
    {"RandomBrightnessContrast": {"p": 1}},
    {"RandomRain": {"p": 1}},
    {"RandomShadow": {"p": 1}},
    {"RandomSunFlare": {"p": 1}},
    {"SaltAndPepper": {"p": 1}},
    {"Spatter": {"p": 1}},
    {"Superpixels": {"p": 1}},
    {"ThinPlateSpline": {"p": 1}},
    {"OneOf": ["RandomGamma", {"Affine": {"rotate": [-20, 20]}}, "ChannelShuffle"]},
    {"SomeOf": {"transforms": ["HorizontalFlip", "HueSaturationValue", "Sharpen"], "n": 2}},
    {"RandomOrder": {"transforms": ["Blur", "Posterize", "CLAHE"], "n": 3}},
]


def face():
    return np.random.default_rng(3).integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8)


def results(transforms, seeds=range(6)):
    transform = Albumentations(transforms)
    return np.stack([transform(face(), seed) for seed in seeds])


@pytest.mark.parametrize("entry", VARIED, ids=lambda entry: next(iter(entry)))
def test_the_same_seed_gives_the_same_image(entry):
    random.seed(1)
    np.random.seed(1)  # noqa: NPY002
    first = results([entry])
    random.seed(2)
    np.random.seed(2)  # noqa: NPY002
    transform = Albumentations([entry])
    backwards = np.stack([transform(face(), seed) for seed in reversed(range(6))])[::-1]
    assert np.array_equal(first, backwards), "neither order nor global generators matter"
    assert len(np.unique(first.reshape(6, -1), axis=0)) > 1, "other seeds, other images"


def test_the_transforms_of_a_list_act_independently():
    """With one seed given to each of them, as albumentations does, both would act on the same images."""
    marks = [
        {"Solarize": {"threshold_range": [0, 0], "p": 0.5}},  # 0 becomes 255
        {"CoarseDropout": {"fill": 7, "num_holes_range": [1, 1], "p": 0.5}},
    ]
    black = np.zeros((SIDE, SIDE, 3), np.uint8)
    transform = Albumentations(marks)
    seen = [transform(black, seed) for seed in range(400)]
    both = np.array([[(image > 100).any(), (image == 7).any()] for image in seen])
    shares = [(both == pattern).all(1).mean() for pattern in ((0, 0), (0, 1), (1, 0), (1, 1))]
    assert min(shares) > 0.18  # 0.25 each, standard deviation 0.022
    assert max(shares) < 0.32


def test_nested_lists_are_albumentations_own():
    import albumentations

    entries = [
        {"GaussianBlur": {"blur_limit": [3, 5], "p": 0.5}},
        {"OneOf": {"transforms": [{"Sequential": {"transforms": ["ToGray", {"RandomGamma": {}}]}}, "Blur"], "p": 0.8}},
        "HorizontalFlip",
    ]
    ours = Albumentations(entries)
    theirs = albumentations.Compose(
        [
            albumentations.GaussianBlur(blur_limit=(3, 5), p=0.5),
            albumentations.OneOf(
                [
                    albumentations.Sequential([albumentations.ToGray(), albumentations.RandomGamma()]),
                    albumentations.Blur(),
                ],
                p=0.8,
            ),
            albumentations.HorizontalFlip(),
        ]
    )
    for seed in range(20):
        theirs.set_random_state(np.random.Generator(np.random.PCG64(seed)), random.Random(seed))
        assert np.array_equal(ours(face(), seed), theirs(image=face())["image"])


def test_it_can_be_sent_to_another_process():
    transform = Albumentations(VARIED[:3])
    again = pickle.loads(pickle.dumps(transform))
    assert np.array_equal(transform(face(), 5), again(face(), 5))


@pytest.mark.parametrize(
    ("transforms", "message"),
    [
        (["GausianBlur"], r"has no transform 'GausianBlur': did you mean GaussianBlur"),
        (["gaussianblur"], r"has no transform 'gaussianblur': did you mean GaussianBlur"),
        (["Zzz"], r"has no transform 'Zzz'$"),
        (["Compose3"], r"no transform 'Compose3': did you mean Compose"),
        (["BasicTransform"], r"has no transform 'BasicTransform'"),
        ([{"Blur": {"limit": 3}}], r"Blur has no argument 'limit': did you mean blur_limit\?; it has blur_limit, p"),
        ([{"Blur": {"strict": True}}], r"Blur has no argument 'strict'"),
        ([{"Blur": {"p": 3}}], r"Blur refuses its arguments: p: .*less than or equal to 1"),
        ([{"SomeOf": {"transforms": ["Blur"], "n": 4}}], r"SomeOf refuses its arguments: .*greater than number"),
        ([{"OneOf": []}], r"OneOf needs a list of transforms"),
        ([{"OneOf": {"p": 0.5}}], r"OneOf needs a list of transforms"),
        ([{"OneOf": {"transforms": [{"Blur": {"q": 1}}]}}], r"Blur has no argument 'q'"),
        ([{"Blur": {}, "ToGray": {}}], r"has 2 names, one is needed"),
        ([{"Blur": 3}], r"Blur has the arguments 3"),
        ([3], r"3 is no transform"),
        ([], r"data.albumentations is \[\]: give a list"),
        ("Blur", r"data.albumentations is 'Blur': give a list"),
        ({"Blur": {}}, r"give a list"),
    ],
)
def test_what_cannot_be_built_is_refused_in_one_line(transforms, message):
    with pytest.raises(ValueError, match=message) as caught:
        Albumentations(transforms)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "transforms",
    [
        [{"RandomCrop": {"height": 20, "width": 20, "p": 0.01}}],
        [{"OneOf": {"transforms": ["Blur", {"Resize": {"height": 30, "width": 24}}], "p": 0.01}}],
        [{"SomeOf": {"transforms": ["Blur", {"CenterCrop": {"height": 9, "width": 9}}], "n": 1}}],
        [{"Resize": {"height": 24, "width": 24}}, {"RandomCrop": {"height": 20, "width": 20}}],
        ["ToTensorV2"],
        ["Normalize"],
        ["ToFloat"],
        [{"FDA": {"reference_images": [], "p": 1}}],
        [{"Mosaic": {"p": 0.1}}],
        [{"RandomCropNearBBox": {"p": 0.1}}],
    ],
    ids=str,
)
def test_what_an_image_does_not_survive_is_refused_before_training(transforms):
    with pytest.raises(ValueError, match=r"data.albumentations") as caught:
        Albumentations(transforms).check(face())
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "transforms",
    [
        VARIED,
        [{"RandomCrop": {"height": 20, "width": 20, "p": 0.5}}, {"Resize": {"height": 24, "width": 24, "p": 1}}],
        [{"Sequential": {"transforms": [{"RandomScale": {"p": 1}}, {"Resize": {"height": 24, "width": 24, "p": 1}}]}}],
        [{"RandomResizedCrop": {"size": [24, 24]}}, {"D4": None}],
    ],
    ids=lambda transforms: next(iter(transforms[0])),
)
def test_what_gives_the_image_its_shape_back_is_welcome(transforms):
    transform = Albumentations(transforms)
    before = face()
    transform.check(before)
    assert np.array_equal(before, face())
    assert transform(before, 0).shape == before.shape


def test_a_change_of_size_that_was_not_foreseen_is_found_too():
    with pytest.raises(ValueError, match=r"makes shape \(20, 20, 3\) of the image's \(24, 24, 3\): end the list"):
        Albumentations([{"RandomCrop": {"height": 20, "width": 20, "p": 1}}])(face(), 0)


def test_it_asks_no_server_and_is_imported_late():
    code = (
        "import sys, socket\n"
        "def refuse(*given, **named): raise SystemExit('a connection was tried')\n"
        "socket.getaddrinfo = socket.create_connection = refuse\n"
        "import facelab.data.process_loader\n"
        "print('albumentations' in sys.modules)\n"
        "facelab.data.process_loader.Albumentations(['ToGray'])\n"
        "print('albumentations' in sys.modules)\n"
    )
    environment = {key: value for key, value in os.environ.items() if key != "NO_ALBUMENTATIONS_UPDATE"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment)
    assert done.stdout.split() == ["False", "True"]
