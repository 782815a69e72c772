"""Makes DICOM files for tests and for fuzzing.

content = dicom_file(np.full((8, 8), 1000, np.uint16), BitsStored=12, WindowCenter=900)
"""

import io
from typing import Any

import numpy as np
from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.uid import UID, ExplicitVRLittleEndian, SecondaryCaptureImageStorage

PATIENT = "Doe^Jane", "4711"  # name and number in every file


def dicom_file(
    pixels: np.ndarray, syntax: UID = ExplicitVRLittleEndian, compress: bool = False, **tags: Any
) -> bytes:
    """Returns the bytes of a DICOM file.

    Args:
      pixels: (H, W) grey or (H, W, 3) RGB, of 8 or 16 bits.
      syntax: the transfer syntax that the file claims.
      compress: also compress the pixels so, if pydicom can.
      tags: keyword -> value, instead of what the pixels say; None: the tag is missing.
    """
    meta = FileMetaDataset()
    meta.TransferSyntaxUID = ExplicitVRLittleEndian if compress else syntax
    meta.MediaStorageSOPClassUID = SecondaryCaptureImageStorage
    meta.MediaStorageSOPInstanceUID = UID("1.2.3.4")
    dataset = FileDataset(io.BytesIO(), {}, file_meta=meta, preamble=bytes(128))
    dataset.SOPClassUID, dataset.SOPInstanceUID = SecondaryCaptureImageStorage, "1.2.3.4"
    dataset.PatientName, dataset.PatientID = PATIENT
    bits = tags.get("BitsStored", pixels.dtype.itemsize * 8)
    grey = pixels.ndim == 2
    values = {
        "Rows": pixels.shape[0], "Columns": pixels.shape[1], "SamplesPerPixel": 1 if grey else 3,
        "PhotometricInterpretation": "MONOCHROME2" if grey else "RGB",
        "BitsAllocated": pixels.dtype.itemsize * 8, "BitsStored": bits, "HighBit": bits - 1,
        "PixelRepresentation": int(pixels.dtype.kind == "i"),
        "PixelData": pixels.tobytes() + bytes(pixels.nbytes % 2),
    }  # fmt: skip
    if not grey:
        values["PlanarConfiguration"] = 0
    for name, value in (values | tags).items():
        if value is not None:
            setattr(dataset, name, value)
    if compress:
        dataset.compress(syntax)
    elif syntax.is_encapsulated:
        dataset["PixelData"].is_undefined_length = True
    buffer = io.BytesIO()
    dataset.save_as(buffer, enforce_file_format=True)
    return buffer.getvalue()
