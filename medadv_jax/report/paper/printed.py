"""The rows of the paper's Tables IV and V, as printed.

Source: Surekha et al., "Robustness against adversarial attacks through a hybrid defense approach
in medical imaging", Electrica 25 (2025), doi 10.5152/electrica.2025.25127. Copied as printed, also
where an attack is called MFGSM and where the caption of Table V names the other data set; the
names of networks, defences and attacks are ours. Columns: network, defence, evaluation, accuracy,
precision, recall, AUC, F1. `consistency.py` tells which rows are possible.
"""

import dataclasses

METRICS = ("accuracy", "precision", "recall", "auc", "f1")  # in the order of the columns
TABLE_OF = {"chest_xray": "IV", "breakhis": "V"}  # our data set -> the paper's table


@dataclasses.dataclass(frozen=True)
class PaperRow:
    """A row of the paper; the numbers are the printed strings."""

    table: str
    model: str
    defense: str
    evaluation: str
    accuracy: str
    precision: str
    recall: str
    auc: str
    f1: str

    def value(self, metric: str) -> float:
        """Returns one of METRICS as a number."""
        return float(getattr(self, metric))


_TABLE_IV = """
inception_v3 adversarial bim 0.36 0.4068 0.4528 0.265 0.4286
inception_v3 adversarial clean 0.89 0.85 0.9623 0.9558 0.9027
inception_v3 adversarial fgsm 0.83 0.8 0.9057 0.9081 0.8496
inception_v3 adversarial mifgsm 0.08 0.0465 0.0377 0.0466 0.0417
inception_v3 adversarial pgd 0.36 0.4068 0.4528 0.265 0.4286
inception_v3 autoencoder bim 0.53 0.53 1 0.6821 0.6928
inception_v3 autoencoder clean 0.53 0.53 1 0.7041 0.6928
inception_v3 autoencoder fgsm 0.53 0.53 1 0.7009 0.6928
inception_v3 autoencoder mifgsm 0.53 0.53 1 0.668 0.6928
inception_v3 autoencoder pgd 0.53 0.53 1 0.6821 0.6928
inception_v3 base bim 0.02 0.0408 0.0377 0.0114 0.0392
inception_v3 base clean 0.9 0.8525 0.9811 0.9767 0.9123
inception_v3 base fgsm 0.53 0.53 1 0.6194 0.6928
inception_v3 base mifgsm 0.02 0.0408 0.0377 0.0149 0.0392
inception_v3 base pgd 0.02 0.0408 0.0377 0.0114 0.0392
resnet50 adversarial bim 0.72 0.7049 0.8113 0.8306 0.7544
resnet50 adversarial clean 0.72 0.7049 0.8113 0.835 0.7544
resnet50 adversarial fgsm 0.72 0.7049 0.8113 0.8294 0.7544
resnet50 adversarial mifgsm 0.72 0.7049 0.8113 0.8334 0.7544
resnet50 adversarial pgd 0.72 0.7049 0.8113 0.8306 0.7544
resnet50 autoencoder bim 0.53 0.53 1 0.7784 0.6928
resnet50 autoencoder clean 0.52 0.5253 0.9811 0.7688 0.6842
resnet50 autoencoder fgsm 0.53 0.53 1 0.7876 0.6928
resnet50 autoencoder mifgsm 0.53 0.53 1 0.7844 0.6928
resnet50 autoencoder pgd 0.53 0.53 1 0.7784 0.6928
resnet50 base bim 0.81 0.925 0.6981 0.829 0.7957
resnet50 base clean 0.81 0.925 0.6981 0.8334 0.7957
resnet50 base fgsm 0.82 0.9487 0.6981 0.8274 0.8043
resnet50 base mifgsm 0.82 0.9487 0.6981 0.8322 0.8043
resnet50 base pgd 0.81 0.925 0.6981 0.829 0.7957
vgg16 adversarial bim 0.76 0.7458 0.8302 0.8145 0.7857
vgg16 adversarial clean 0.78 0.7541 0.8679 0.8193 0.807
vgg16 adversarial fgsm 0.75 0.7414 0.8113 0.8137 0.7748
vgg16 adversarial mifgsm 0.75 0.7414 0.8113 0.8169 0.7748
vgg16 adversarial pgd 0.76 0.7458 0.8302 0.8145 0.7857
vgg16 autoencoder bim 0.53 0.53 1 0.8475 0.6928
vgg16 autoencoder clean 0.53 0.53 1 0.8495 0.6928
vgg16 autoencoder fgsm 0.53 0.53 1 0.8515 0.6928
vgg16 autoencoder mifgsm 0.53 0.53 1 0.8543 0.6928
vgg16 autoencoder pgd 0.53 0.53 1 0.8475 0.6928
vgg16 base bim 0.94 0.9273 0.9623 0.9502 0.9444
vgg16 base clean 0.95 0.9444 0.9623 0.9611 0.9533
vgg16 base fgsm 0.94 0.9273 0.9623 0.951 0.9444
vgg16 base mifgsm 0.94 0.9273 0.9623 0.9434 0.9444
vgg16 base pgd 0.94 0.9273 0.9623 0.9502 0.9444
vgg19 adversarial bim 0.86 0.898 0.8302 0.8896 0.8627
vgg19 adversarial clean 0.87 0.9167 0.8302 0.8976 0.8713
vgg19 adversarial fgsm 0.85 0.88 0.8302 0.8888 0.8544
vgg19 adversarial mifgsm 0.86 0.898 0.8302 0.8988 0.8627
vgg19 adversarial pgd 0.86 0.898 0.8302 0.8896 0.8627
vgg19 autoencoder bim 0.47 0 0 0.6744 0
vgg19 autoencoder clean 0.47 0 0 0.6656 0
vgg19 autoencoder fgsm 0.47 0 0 0.6744 0
vgg19 autoencoder mifgsm 0.47 0 0 0.668 0
vgg19 autoencoder pgd 0.47 0 0 0.6744 0
vgg19 base bim 0.93 0.9259 0.9434 0.9418 0.9346
vgg19 base clean 0.93 0.9423 0.9245 0.9566 0.9333
vgg19 base fgsm 0.9 0.8772 0.9434 0.951 0.9091
vgg19 base mifgsm 0.91 0.8929 0.9434 0.9534 0.9174
vgg19 base pgd 0.93 0.9259 0.9434 0.9418 0.9346
"""

_TABLE_V = """
inception_v3 base clean 0.8315 0.806 0.8732 0.9227 0.8383
inception_v3 base fgsm 0.029 0.0113 0.0109 0.0026 0.0111
inception_v3 base pgd 0.005 0.002 0.001 0.003 0.0015
inception_v3 base mifgsm 0.003 0.001 0.002 0.001 0.0012
inception_v3 base bim 0.007 0.003 0.004 0.002 0.0035
inception_v3 adversarial clean 0.7654 0.7234 0.7987 0.8456 0.7598
inception_v3 adversarial fgsm 0.6789 0.6345 0.7123 0.7567 0.6754
inception_v3 adversarial pgd 0.5234 0.4876 0.5567 0.6123 0.5198
inception_v3 adversarial mifgsm 0.5789 0.5345 0.6123 0.6567 0.5756
inception_v3 adversarial bim 0.4567 0.4123 0.4876 0.5234 0.4534
inception_v3 autoencoder clean 0.8167 0.7934 0.8456 0.9012 0.8178
inception_v3 autoencoder fgsm 0.6987 0.6543 0.7234 0.7567 0.6954
inception_v3 autoencoder pgd 0.5789 0.5345 0.6123 0.6789 0.5756
inception_v3 autoencoder mifgsm 0.6234 0.5876 0.6567 0.7123 0.6198
inception_v3 autoencoder bim 0.5456 0.5012 0.5789 0.6456 0.5423
resnet50 base clean 0.9312 0.9577 0.9022 0.9824 0.9291
resnet50 base fgsm 0.5 0.001 0.002 0.4335 0.0015
resnet50 base pgd 0.5 0.003 0.001 0.4281 0.002
resnet50 base mifgsm 0.4891 0.002 0.003 0.1301 0.0025
resnet50 base bim 0.0688 0.001 0.004 0.0003 0.002
resnet50 adversarial clean 0.8987 0.9234 0.8567 0.9345 0.8954
resnet50 adversarial fgsm 0.7123 0.6789 0.7456 0.7823 0.7089
resnet50 adversarial pgd 0.6234 0.5876 0.6567 0.6987 0.6198
resnet50 adversarial mifgsm 0.6789 0.6345 0.7123 0.7456 0.6754
resnet50 adversarial bim 0.5987 0.5543 0.6234 0.6789 0.5954
resnet50 autoencoder clean 0.9234 0.9567 0.8923 0.9712 0.9198
resnet50 autoencoder fgsm 0.8567 0.8234 0.8798 0.8987 0.8534
resnet50 autoencoder pgd 0.8123 0.7789 0.8456 0.8654 0.8089
resnet50 autoencoder mifgsm 0.8345 0.7987 0.8623 0.8789 0.8312
resnet50 autoencoder bim 0.7987 0.7654 0.8234 0.8456 0.7954
vgg16 base clean 0.8714 0.9325 0.8007 0.9492 0.8616
vgg16 base fgsm 0.5 0.002 0.001 0.6767 0.0015
vgg16 base pgd 0.5 0.001 0.003 0.6673 0.002
vgg16 base mifgsm 0.5 0.003 0.002 0.0004 0.0025
vgg16 base bim 0.1467 0.001 0.004 0.001 0.002
vgg16 adversarial clean 0.8234 0.8567 0.7656 0.8987 0.8198
vgg16 adversarial fgsm 0.5789 0.5234 0.6123 0.6567 0.5756
vgg16 adversarial pgd 0.4567 0.4123 0.4876 0.5456 0.4534
vgg16 adversarial mifgsm 0.5123 0.4678 0.5456 0.5987 0.5089
vgg16 adversarial bim 0.4234 0.3789 0.4567 0.5123 0.4198
vgg16 autoencoder clean 0.8523 0.8976 0.8123 0.9234 0.8487
vgg16 autoencoder fgsm 0.6789 0.6345 0.7123 0.7567 0.6754
vgg16 autoencoder pgd 0.5987 0.5543 0.6234 0.6789 0.5954
vgg16 autoencoder mifgsm 0.6345 0.5876 0.6678 0.7123 0.6312
vgg16 autoencoder bim 0.5789 0.5234 0.6067 0.6567 0.5756
vgg19 base clean 0.8478 0.8609 0.8297 0.9299 0.845
vgg19 base fgsm 0.5 0.003 0.002 0.473 0.0025
vgg19 base pgd 0.5 0.001 0.004 0.4589 0.002
vgg19 base mifgsm 0.4982 0.002 0.001 0.001 0.0015
vgg19 base bim 0.0254 0.004 0.003 0.002 0.0035
vgg19 adversarial clean 0.8123 0.8345 0.7789 0.8876 0.8089
vgg19 adversarial fgsm 0.6234 0.5789 0.6567 0.7123 0.6198
vgg19 adversarial pgd 0.5456 0.4987 0.5823 0.6345 0.5423
vgg19 adversarial mifgsm 0.5789 0.5234 0.6123 0.6567 0.5756
vgg19 adversarial bim 0.5123 0.4567 0.5456 0.5987 0.5089
vgg19 autoencoder clean 0.8367 0.8698 0.8012 0.9156 0.8334
vgg19 autoencoder fgsm 0.7123 0.6789 0.7456 0.7834 0.7089
vgg19 autoencoder pgd 0.6567 0.6234 0.6891 0.7345 0.6534
vgg19 autoencoder mifgsm 0.6789 0.6456 0.7123 0.7567 0.6756
vgg19 autoencoder bim 0.6345 0.5987 0.6678 0.7234 0.6312
"""


def _parse(table: str, text: str) -> list[PaperRow]:
    return [PaperRow(table, *line.split()) for line in text.strip().splitlines()]


ROWS = {"IV": _parse("IV", _TABLE_IV), "V": _parse("V", _TABLE_V)}
