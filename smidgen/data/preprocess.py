"""From stored pixels to what a network takes, declared once.

    x = (pixel · scale − mean) / std          pixel 0..255, mean and std in units after `scale`

Order: colours → crop (only if `crop_first`) → resize → crop → arithmetic → layout. Resizing is Pillow's bilinear filter
with antialiasing, on 8-bit pixels; the rounding of the longer side and of the crop's corner is torchvision's.
"""

from __future__ import annotations

import difflib
import math
import os
import tomllib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeGuard

import numpy as np
from numpy.typing import NDArray

from smidgen.errors import DataError

if TYPE_CHECKING:
    from PIL import Image

Size = int | tuple[int, int]

LAYOUTS = ("nchw", "nhwc")
CHANNELS = ("rgb", "bgr", "gray")
_LARGEST_SIDE = 65_535  # the JPEG format's own limit; beyond it a size is surely a slip
_LONGEST_TEXT = 40  # characters of a fraction; int() of long text is slow
_LARGEST_TOML = 1 << 20  # bytes; a declaration has ten lines
# ITU-R 601-2 luma in 16-bit fixed point, as Pillow's convert("L") computes it; arrays and files then agree exactly.
_LUMA = np.array([19595, 38470, 7471], dtype=np.uint32)


@dataclass(frozen=True)
class Preprocess:
    """How an image becomes a network's input: x = (pixel · scale − mean) / std.

    Args:
        mean: one number for each channel in the network's channel order, or one for all, in units after `scale`.
        std: as `mean`; not zero.
        scale: multiplies the pixel 0..255 first; "1/255" is read as a fraction.
        layout: "nchw" or "nhwc".
        channels: "rgb", "bgr" or "gray". Image files are converted to it; arrays with one channel stay gray.
        resize: shorter side in pixels, or (height, width) exactly; Pillow bilinear, antialiased.
        crop: side or (height, width) of the centre crop, after resizing.
        crop_first: crop before resizing.

    Raises:
        DataError: a value that cannot be meant.

    >>> pre = Preprocess(mean=(0.5,), std=(0.5,), scale="1/255")
    >>> pre(np.array([[0, 255]], np.uint8)).tolist()
    [[[-1.0, 1.0]]]
    """

    mean: tuple[float | int, ...] = ()
    std: tuple[float | int, ...] = ()
    scale: float | int | str = 1.0
    layout: str = "nchw"
    channels: str = "rgb"
    resize: int | tuple[int, int] | None = None
    crop: int | tuple[int, int] | None = None
    crop_first: bool = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "scale", _parse_scale(self.scale))
        for name, value, known in (("layout", self.layout, LAYOUTS), ("channels", self.channels, CHANNELS)):
            if value not in known:
                raise DataError(
                    f"preprocess: {name}={_clip(value)} is not known; use {' or '.join(known)}{_near(value, known)}"
                )
        count = 1 if self.channels == "gray" else 3
        for name in ("mean", "std"):
            values = _parse_numbers(name, getattr(self, name))
            if len(values) not in (0, 1, count):
                raise DataError(
                    f"preprocess: {name} holds {len(values)} numbers for channels={self.channels!r}; give 1 or {count}"
                )
            object.__setattr__(self, name, values)
        for name in ("resize", "crop"):
            object.__setattr__(self, name, _parse_sides(name, getattr(self, name)))
        if not all(self.std):
            raise DataError(
                f"preprocess: std={self.std} holds a zero; give the deviation of each channel, or leave std out"
            )

    @classmethod
    def from_toml(cls, path: str | os.PathLike[str]) -> Preprocess:
        """The declaration in a small TOML file of the same names, such as ``scale = "1/255"``.

        Args:
            path: the file.

        Raises:
            DataError: unreadable, an unknown key (the nearest names are listed) or a value that cannot be meant.

        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     _ = Path(folder, "pre.toml").write_text('resize = 256\\ncrop = 224')
        ...     Preprocess.from_toml(Path(folder, "pre.toml")).output_size(480, 640)
        (224, 224)
        """
        shown = Path(path).name
        try:
            if os.path.getsize(path) > _LARGEST_TOML:
                raise DataError(f"preprocess: {shown!r} is larger than a declaration can be; give the TOML file")
            with open(path, "rb") as stream:
                stored = tomllib.load(stream)
        except (OSError, ValueError, RecursionError) as error:
            raise DataError(
                f'preprocess: {shown!r} cannot be read as TOML ({error}); write e.g. scale = "1/255"'
            ) from error
        return cls.from_dict(stored)

    @classmethod
    def from_dict(cls, stored: Mapping[str, object]) -> Preprocess:
        """The declaration that `to_dict` wrote, from parsed JSON or TOML.

        Args:
            stored: names and values; lists stand for tuples.

        Raises:
            DataError: an unknown key or a value that cannot be meant.

        >>> Preprocess.from_dict({"crop": [4, 5]}).crop
        (4, 5)
        """
        known = {field.name: field.default for field in fields(cls)}
        values: dict[str, Any] = {}
        for name, value in stored.items():
            if name not in known:
                raise DataError(
                    f"preprocess: {_clip(name)} is not one of {', '.join(known)}{_near(name, tuple(known))}"
                )
            value = tuple(value) if isinstance(value, list) else value
            if name in ("mean", "std"):
                value = _parse_numbers(name, (value,) if isinstance(value, int | float) else value)
            elif name in ("resize", "crop"):
                value = _parse_sides(name, value)
            elif name == "scale":
                value = _parse_scale(value)
            if isinstance(known[name], str | bool) and not isinstance(value, type(known[name])):
                raise DataError(f"preprocess: {name}={_clip(value)} is of the wrong type; give e.g. {known[name]!r}")
            values[name] = value
        return cls(**values)

    def to_dict(self) -> dict[str, Any]:
        """The declaration as JSON holds it.

        >>> Preprocess.from_dict(Preprocess(scale="1/255").to_dict()) == Preprocess(scale=1 / 255)
        True
        """
        return {name: list(value) if isinstance(value, tuple) else value for name, value in asdict(self).items()}

    @property
    def changes_values(self) -> bool:
        """Whether anything but layout and colours is declared; such a declaration cannot apply to ready-made inputs."""
        plain = not (self.mean or self.std or self.resize or self.crop)
        return not plain or float(self.scale) != 1.0

    def output_size(self, height: int, width: int) -> tuple[int, int]:
        """Height and width after resizing and cropping.

        Args:
            height, width: of the stored image, in pixels.

        Raises:
            DataError: the crop is larger than what it is cut from.

        >>> Preprocess(resize=256, crop=224).output_size(300, 400)
        (224, 224)
        """
        steps = (self._cropped, self._resized) if self.crop_first else (self._resized, self._cropped)
        for step in steps:
            height, width = step(height, width)
        return height, width

    def __call__(self, image: NDArray[np.uint8]) -> NDArray[np.float32]:
        """One prepared image.

        Args:
            image: pixels (H, W), (H, W, 1) or (H, W, 3) in RGB.

        Returns:
            (C, H, W) or (H, W, C), as `layout` says.

        Raises:
            DataError: another shape, or a crop that does not fit.
        """
        if image.ndim == 2:
            image = image[..., None]
        if image.ndim != 3 or image.shape[2] not in (1, 3) or image.size == 0:
            raise DataError(
                f"preprocess: an image of shape {image.shape} cannot be read; give (H, W), (H, W, 1) or (H, W, 3)"
            )
        return self.batch(image[None])[0]

    def batch(self, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Prepared images of one size.

        Args:
            images: (N, H, W, C) pixels, C one (gray) or three (RGB).

        Returns:
            (N, C, H, W) or (N, H, W, C), as `layout` says.

        Raises:
            DataError: a crop that does not fit, or means for another number of channels.
        """
        images = _to_gray(images) if self.channels == "gray" and images.shape[3] == 3 else images
        if self.resize is not None:
            images = np.stack([self._resize_array(image) for image in images])
        else:
            stored_height, stored_width = images.shape[1:3]
            top, left, height, width = _centre(
                stored_height, stored_width, *self.output_size(stored_height, stored_width)
            )
            images = images[:, top : top + height, left : left + width]
        return self.arithmetic(images)

    def fit(self, image: Image.Image) -> Image.Image:
        """Resize and crop a decoded image, in the declared order."""
        from PIL import Image

        for step in ("crop", "resize") if self.crop_first else ("resize", "crop"):
            width, height = image.size
            if step == "resize" and self._resized(height, width) != (height, width):
                height, width = self._resized(height, width)
                image = image.resize((width, height), Image.Resampling.BILINEAR)
            elif step == "crop" and self.crop is not None:
                top, left, height, width = _centre(height, width, *self._cropped(height, width))
                image = image.crop((left, top, left + width, top + height))
        return image

    def arithmetic(self, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Colour order, (pixel · scale − mean) / std and layout of fitted images (N, H, W, C)."""
        count = images.shape[3]
        if self.channels == "bgr" and count == 3:
            images = images[..., ::-1]
        axes = (0, 3, 1, 2) if self.layout == "nchw" else (0, 1, 2, 3)
        x = images.transpose(axes).astype(np.float32, order="C")
        shape = (count, 1, 1) if self.layout == "nchw" else (count,)
        # In place and only where something changes: 50,000 images are a gigabyte as float32.
        if float(self.scale) != 1.0:
            x *= np.float32(self.scale)
        for values, operation in ((self.mean, np.subtract), (self.std, np.divide)):
            if values:
                operation(x, self._channel_values(values, count).reshape(shape), out=x)
        return x

    def _channel_values(self, values: tuple[float | int, ...], count: int) -> NDArray[np.float32]:
        if len(values) not in (1, count):
            raise DataError(
                f"preprocess: {len(values)} means or deviations for images of {count} channel(s); give 1 or {count}"
            )
        return np.array(values * count if len(values) == 1 else values, dtype=np.float32)

    def _resized(self, height: int, width: int) -> tuple[int, int]:
        if self.resize is None or isinstance(self.resize, tuple):
            return self.resize or (height, width)
        # The longer side is rounded down, as torchvision does.
        if height <= width:
            return self.resize, max(1, self.resize * width // height)
        return max(1, self.resize * height // width), self.resize

    def _cropped(self, height: int, width: int) -> tuple[int, int]:
        if self.crop is None:
            return height, width
        wanted = (self.crop, self.crop) if isinstance(self.crop, int) else self.crop
        if wanted[0] > height or wanted[1] > width:
            raise DataError(
                f"preprocess: crop={self.crop} does not fit an image of {height}×{width}; resize first or crop less"
            )
        return wanted

    def _resize_array(self, image: NDArray[np.uint8]) -> NDArray[np.uint8]:
        from PIL import Image

        fitted = np.asarray(self.fit(Image.fromarray(image[..., 0] if image.shape[2] == 1 else image)))
        return fitted.reshape(*fitted.shape[:2], image.shape[2])


def _centre(height: int, width: int, inner_height: int, inner_width: int) -> tuple[int, int, int, int]:
    """Top, left, height, width of a centre crop; Python's round of the half margin, as torchvision."""
    return round((height - inner_height) / 2), round((width - inner_width) / 2), inner_height, inner_width


def _to_gray(images: NDArray[np.uint8]) -> NDArray[np.uint8]:
    return ((images @ _LUMA + 0x8000) >> 16).astype(np.uint8)[..., None]


def _clip(value: object) -> str:
    shown = repr(value)
    return shown if len(shown) <= _LONGEST_TEXT + 2 else shown[:_LONGEST_TEXT] + "…"


def _near(name: object, known: tuple[str, ...]) -> str:
    near = difflib.get_close_matches(str(name)[:_LONGEST_TEXT].lower(), known, n=3, cutoff=0.5)
    return f"; did you mean {' or '.join(near)}?" if near else ""


def _parse_scale(given: object) -> float:
    try:
        if isinstance(given, bool) or not isinstance(given, int | float | str):
            raise ValueError("not a number")
        if isinstance(given, str) and (len(given) > _LONGEST_TEXT or "e" in given.lower()):
            raise ValueError("an exponent or too long")  # Fraction("1e999999999") would not end
        if isinstance(given, str):
            over, slash, under = given.partition("/")  # by hand: Fraction does not read "1/127.5"
            if "/" in under:
                raise ValueError("two strokes")
            scale = float(Fraction(over) / Fraction(under if slash else "1"))
        else:
            scale = float(given)
    except (ValueError, ZeroDivisionError, OverflowError) as error:
        raise DataError(f'preprocess: scale={_clip(given)} is not a number; give e.g. 0.0078125 or "1/255"') from error
    if not math.isfinite(scale) or scale == 0:
        raise DataError(f'preprocess: scale={_clip(given)} is not a finite number other than 0; give e.g. "1/255"')
    return scale


def _parse_numbers(name: str, given: object) -> tuple[float, ...]:
    if not isinstance(given, tuple) or any(isinstance(v, bool) or not isinstance(v, int | float) for v in given):
        raise DataError(f"preprocess: {name}={_clip(given)} is not a row of numbers; give one for each channel")
    # abs(v) < 1e30 also turns away NaN, infinities and integers that no float holds.
    if not all(abs(v) < 1e30 for v in given):
        raise DataError(f"preprocess: {name}={_clip(given)} is not finite; give one number for each channel")
    return tuple(float(v) for v in given)


def _parse_sides(name: str, given: object) -> int | tuple[int, int] | None:
    match given:
        case None:
            return None
        case tuple((first, second)) if _is_side(first) and _is_side(second):
            return first, second
        case side if _is_side(side):
            return side
    raise DataError(f"preprocess: {name}={_clip(given)} is not a size in pixels; give e.g. 224 or (224, 224)")


def _is_side(given: object) -> TypeGuard[int]:
    return isinstance(given, int) and not isinstance(given, bool) and 1 <= given <= _LARGEST_SIDE
