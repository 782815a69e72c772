"""Every field of a run, with its unit, set to the values of the paper.

The other files in this folder call `get_config()` and override a few fields; the command line
overrides any field of any of them: `--config.train.epochs=5`. Fields hold numbers, booleans and
strings only, so that a saved config rebuilds its run. `medadv_jax/experiment/validate.py` has the
allowed values.

Source of the defaults: Surekha et al., Electrica 25 (2025) 25127, section III-C. Where the paper
is silent, the comment says what is common.
"""

import ml_collections

from medadv_jax.config import Config


def get_config() -> Config:
    """Returns the default config; the types of the values are the types of the fields."""
    config: Config = ml_collections.ConfigDict()
    config.seed = 0  # integer; fixes splits, initial weights, data order, augmentation and attacks
    # comma-separated; trained in this order
    config.defenses = "base,adversarial,autoencoder,hybrid"
    config.deterministic = False  # GPU: only kernels that give the same bits each time; slower
    # folder of compiled programs, for later starts; "": none
    config.compile_cache = "~/.cache/medadv_jax/programs"
    config.reuse = ""  # a run directory; its stages are copied if trained just as here; "": none

    config.data = data = ml_collections.ConfigDict()
    # breakhis | chest_xray | chest_xray14: 14 findings | folder: your own images | phantoms
    data.name = "chest_xray"
    # folder of your images or of a public download; "": $MEDADV_DATA_DIR, else it is fetched
    data.dir = ""
    data.labels = "class"  # class | subtype: BreakHis' 8 tumours; X-rays' normal, bacteria, virus
    # table of your images: file, label, maybe patient, split, attributes; only for folder
    data.csv = ""
    data.classes = ""  # order of your classes, comma-separated; "": sorted; only for folder
    # regular expression that finds the patient in a file name; only for folder
    data.group_pattern = ""
    data.cache_dir = "~/.cache/medadv_jax"  # decoded images at the target size, shared by runs
    data.image_size = 224  # pixels, height = width
    data.fit = "crop"  # crop: centre square | pad: whole image on black; aspect is kept by both
    data.split = "patient"  # patient: no group in two splits | image: the paper's | official
    data.official_list = ""  # file with BreakHis' published fold; only for split=official
    data.per_class = 1000  # images a class, balanced, cut 70/15/15; 0: all images, unbalanced
    data.train_all = False  # per_class bounds validation and test only; training has all the rest
    data.num_folds = 0  # k-fold by group: the number of folds; 0: one 70/15/15 split
    data.fold = 0  # which fold is tested, from 0; only with num_folds > 0
    data.phantom_kind = "xray"  # xray | histology; only for phantoms
    data.phantom_images = 1200  # images, half of each class; only for phantoms
    data.phantom_seed = 0  # integer; only for phantoms

    data.augment = augment = ml_collections.ConfigDict()  # training images only
    augment.shift = 0.05  # at most this share of the image's side, each way
    augment.rotation = 10.0  # degrees, at most, each way
    augment.brightness = 0.1  # factor within 1 ± this
    augment.flip = False  # the 8 symmetries of a square; never for chests: left is not right

    config.model = model = ml_collections.ConfigDict()
    model.name = "resnet50"  # see medadv_jax/models
    model.width = 1.0  # multiplies the number of channels; 1 is the published network
    # none: fresh | a file of weights, a run, a model folder | a name such as torchvision/resnet50
    model.weights = "none"
    model.normalization = "auto"  # imagenet | symmetric | caffe | auto: that of the weights
    model.head = "auto"  # VGG's: fc | gap: mean over places; auto: the original's
    model.dropout = -1.0  # rate before VGG's and Inception's head; -1: the original's
    model.conv_impl = "auto"  # of one function: cpu | gpu | plain | auto: by the backend
    # of float32's products in training: default: the backend's fastest | high | highest: float32
    model.precision = "default"
    model.dtype = "float32"  # compute: float32 | bfloat16; parameters, norms and loss stay float32

    config.train = train = ml_collections.ConfigDict()
    # passes over the training images, for each defence; 0: the weights of the file as they are
    train.epochs = 20
    train.batch_size = 32  # images a step, over all devices
    train.learning_rate = 0.001  # its largest value
    train.schedule = "constant"  # constant: the paper's | cosine: to 0 over all steps
    # The optimizer of base and adversarial; purifiers, and networks trained with them, have Adam.
    train.optimizer = "adam"  # adam: the paper's | adamw | sgd: with momentum
    train.weight_decay = 0.0  # of adamw (commonly 0.01) and sgd (0.0005); kernels only; 0: none
    train.momentum = 0.9  # of sgd
    train.clip_norm = 0.0  # largest norm of all gradients together; 0: no limit
    train.warmup_epochs = 0.0  # epochs in which the learning rate rises to its value; 0: none
    # decay of the running average of the weights, which is validated and deployed; 0: none
    train.ema = 0.0
    train.class_weights = "none"  # none | balanced: n / (K · images of the class), in the loss
    train.sampling = "uniform"  # uniform: each image once an epoch | balanced: each class as often
    train.trainable = "all"  # all | head | last_stage: and the head; BatchNorm then stays as it is
    # Adversarial training; see docs/training.md for what goes with what.
    # mixed: clean and attacked images | madry: attacked ones | trades | mart: pairs of both
    train.objective = "mixed"
    train.beta = 6.0  # weight of the divergence in trades (1/λ; 6 is common) and mart (λ; 5)
    # multi_step: train.attacks | fast | noise: one step | free: replays
    train.method = "multi_step"
    train.replays = 4  # of free: updates with each batch; train.epochs is not divided by it
    # norm of a kernel's worst perturbation over the kernel's norm (commonly 0.005); 0: none
    train.weight_perturbation = 0.0
    # attacked | clean: BatchNorm has statistics for each, and these are deployed | none: together
    train.dual_norm = "none"
    # share of the labels spread over all classes, also in base; 0: none
    train.label_smoothing = 0.0
    train.attacks = "fgsm,pgd,bim,mifgsm"  # comma-separated; the attacks trained against
    train.assignment = "one"  # one: each example meets one of the attacks | all: each meets all
    train.adversarial_weight = 0.5  # share of the loss from adversarial examples, in [0, 1]
    train.num_steps = 5  # steps of the attacks in training and validation; the paper gives none
    train.log_steps = 20  # steps between lines of metrics.jsonl; one more after each epoch
    train.checkpoint_minutes = 0.0  # minutes between checkpoints within an epoch; 0: none

    config.attack = attack = ml_collections.ConfigDict()  # for training, validation, evaluation
    attack.epsilon = 0.03  # radius of the ball, pixels in [0, 1]
    attack.norm = "linf"  # linf | l2; the norm of the ball
    attack.relative_step = 2.5  # step size × steps / epsilon, for attacks of many steps (Madry)
    attack.decay = 1.0  # momentum decay μ of MI-FGSM (Dong et al. 2018)
    # of the first-order attacks in the evaluation: none | next: class y + 1 for label y | a class
    attack.targeted = "none"
    # the evaluation's attackers change: none: all | pixel | a patch, as 0.04 or 0.04@0.3,0.7
    attack.mask = "none"
    attack.grey = False  # evaluation: the same change in all channels, so that grey stays grey
    attack.loop = "fori_loop"  # or unrolled: a copy of the step for each, long to compile

    config.purifier = purifier = ml_collections.ConfigDict()  # of autoencoder and hybrid
    purifier.name = "dense"  # dense: the paper's | spatial: keeps the layout | unet: residual
    purifier.bottleneck = 128  # units of dense; spatial has 1/8 as channels; unet none
    purifier.width = 1.0  # multiplies the number of channels
    purifier.objective = "reconstruction"  # reconstruction: the paper's | denoising | guided
    purifier.noise = 0.03  # radius of the noise in denoising and guided, pixels in [0, 1]
    purifier.guidance = 1.0  # weight of the classifier's agreement in guided
    purifier.epochs = 10  # passes over the training images
    purifier.learning_rate = 0.001  # Adam's
    purifier.joint_epochs = 0  # of the hybrid: network and purifier together, attacked together
    purifier.joint_learning_rate = 0.0003  # Adam's

    config.distill = distill = ml_collections.ConfigDict()  # of distilled: a narrower network
    distill.teacher = "adversarial"  # the defence that it learns from, which stands before it
    distill.width = 0.25  # multiplies the number of channels, as model.width
    distill.epochs = 10  # passes over the training images
    distill.temperature = 5.0  # t: both networks' logits are divided by it
    distill.weight = 0.9  # α: share of the loss from the teacher, in [0, 1]; the rest from labels

    config.defense = defense = ml_collections.ConfigDict()  # of smoothed, denoised, …_adversarial
    defense.sigma = 0.25  # standard deviation of the Gaussian noise, pixels in [0, 1]

    config.eval = evaluate = ml_collections.ConfigDict()
    # comma-separated, a row of results.csv for each; also autoattack, fab, fmn, square, universal;
    # none: with several labels an image
    evaluate.attacks = "fgsm,pgd,bim,mifgsm,apgd"
    evaluate.images = 0  # test images, as many of each class, drawn by the seed; 0: all
    evaluate.num_steps = 10  # steps of BIM, MI-FGSM and PGD
    evaluate.apgd_steps = 100  # steps of APGD, FAB and FMN, also within AutoAttack
    evaluate.queries = 5000  # of Square, also within AutoAttack
    evaluate.universal_images = 500  # training images that universal is fitted on; 0: all
    evaluate.universal_epochs = 5  # passes over them
    evaluate.restarts = 1  # random starts of PGD; the strongest counts, for each example
    evaluate.keep_best = True  # the strongest iterate counts, not the last
    evaluate.batch_size = 32  # images at a time; does not change any result
    # chooses the checkpoint of an adversarially trained network; auto: pgd, through a purifier apgd
    evaluate.validation_attack = "auto"
    evaluate.validation_steps = 20  # steps of that attack if it is APGD; others: train.num_steps
    # decision between two classes: argmax | youden: the best threshold on validation images
    evaluate.threshold = "argmax"
    evaluate.checks = True  # the self-checks, and accuracy against ε and against steps
    evaluate.check_images = 64  # test images for them, as many of each class
    evaluate.second_images = 200  # test images that self-check 7 attacks by another algorithm
    evaluate.second_queries = 500  # of Square in self-check 7
    evaluate.saliency_images = 0  # test images whose saliency maps are compared; 0: none
    evaluate.save_images = 0  # attacked test images that are saved, as PNG and floats; 0: none

    config.detector = detector = ml_collections.ConfigDict()  # beside base; needs autoencoder
    detector.run = True  # whether detectors are measured
    detector.images = 0  # test images they are measured on, as many of each class; 0: all
    detector.false_positive_rate = 0.05  # of clean validation images; chooses the threshold
    detector.attack = "pgd"  # of the adaptive attacker, whose loss includes the detector's score
    detector.penalty = 1.0  # its weight of score / threshold beside the cross-entropy
    return config


def set_guided_purifier(config: Config) -> None:
    """Sets the better purifier: a residual one that keeps the classifier's predictions. The paper's
    destroys the image."""
    config.purifier.name = "unet"
    config.purifier.width = 0.5
    config.purifier.objective = "guided"
    config.purifier.epochs = 4
    config.purifier.joint_epochs = 3
