"""The prose of a new card: everything that is neither counted nor measured."""

from __future__ import annotations

RESTORER_CARD = """# {name}

{summary}

RGB in and out, {side}x{side}; fully convolutional, so multiples of 32 px run too. The starting point of `ufr-edge adapt`.

## Facts

<!-- facts:begin -->
<!-- facts:end -->

## Data

<!-- data:begin -->
<!-- data:end -->

## Figures

The feature distances are on the prior's own features, which the perceptual and the adversarial term of the training use
too: PSNR, detail and landmarks are the witnesses that training does not know.

<!-- figures:begin -->
<!-- figures:end -->

## Intended use

Faces in blurred, noisy, small or compressed pictures and video, as they come or after adaptation to one camera.
Not for identifying, verifying or judging anyone: detail is invented, and a restored face is a likeness.

## Limits

<!-- limits:begin -->
<!-- limits:end -->

## Licence

{licence}
"""

PRIOR_CARD = """# {name}

{summary}

An unconditional face prior: a diffusers `UNet2DModel` over images pixel-unshuffled by 4, side {side}, under the linear
schedule of 1000 steps. Prediction type `wiener_residual` (ours, see `ufr_edge/priors/wiener.py`): the best linear
denoiser under the power spectrum of faces is applied in closed form and the network predicts what it leaves of the noise.
Read it with `ufr_edge.priors.files.load_prior("{name}")`; `UNet2DModel.from_pretrained` reads the network alone.

## Facts

<!-- facts:begin -->
<!-- facts:end -->

## Data

<!-- data:begin -->
<!-- data:end -->

## Figures

<!-- figures:begin -->
<!-- figures:end -->

## Intended use

Drawing training targets for a restorer (`ufr-edge targets`, `ufr-edge adapt`), and distances on its features. Its
unconditional samples are a check, not a product: it is trained for the noise levels that the method visits.

## Limits

<!-- limits:begin -->
<!-- limits:end -->

## Licence

{licence}
"""

_PEOPLE = (
    "People of the sources only: office holders of one country, a studio set of another, and the taste of image "
    "generators. Ages and skin tones are not annotated in the data, so no figure by age or skin tone was measured; by "
    "the looks of them children, very old people and dark skin in dim light are rare."
)
_POSES = (
    "Aligned, frontal to three-quarter faces. Profiles, hands before the face, masks, heavy make-up and sunglasses are "
    "rare in the data and fail."
)
_INVENTED = (
    "Detail is invented, most of all teeth, eyes and hair in heavily degraded faces: a closed mouth may come back open, "
    "an old or a very young face as that of a young adult, a beard or glasses may go or come. Nothing measures this but the "
    "eye."
)
LIMITS = (
    _PEOPLE,
    "The held-out faces come from three of these kinds of source: other cameras and people were not measured.",
    _POSES,
    _INVENTED,
)

LICENCE = (
    "Apache-2.0 for these weights, as far as we can give it. Several sources of the training faces allow research use "
    "only, or state no licence (see the table): a product should retrain on its own data with `ufr-edge pretrain`."
)
