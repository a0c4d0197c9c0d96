"""Every key with its default. A key set to None is filled in when the run starts.

What None becomes depends on other keys (`hvp_jax/config/resolve.py`) and is
written to the workdir's config.json, so that a run always tells what it used.
"""

from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder


def get_config() -> ConfigDict:
    config = ConfigDict()
    config.seed = 42
    config.parallel = "pmap"  # pmap, shard_map: how a step is laid over devices
    config.fsdp = False  # shard_map only: a device holds a part of the weights and moments
    config.precision = "float32"  # float32, bfloat16: of the towers' arithmetic

    config.model = ConfigDict()
    # ViT-B/32, ViT-B/16, ViT-L/14, tiny; None: as the weights are, or ViT-B/32 from scratch
    config.model.variant = placeholder(str)
    # Of a frame's side; None: the variant's or the weights'. Positions are resized to it.
    config.model.image_size = placeholder(int)
    # Layers counted from 1; None: those of the weights if told, or first, middle, last.
    config.model.taps = placeholder(tuple)
    # A checkpoint to start from: a workdir, or any that `port` reads; empty: random weights.
    config.model.weights = ""
    # The patch convolution; None: frozen on a pretrained CLIP, trained from scratch.
    config.model.freeze_patches = placeholder(bool)
    config.model.remat = "dots"  # none, dots, full: what the towers keep for the gradient

    config.distill = ConfigDict()
    config.distill.stages = placeholder(int)  # None: those of the weights, or 3
    config.distill.noise = "train"  # train, always, never: noise that breaks ties of density

    config.similarity = ConfigDict()
    config.similarity.word_weights = "query"  # query, paired (leaks the answer)
    config.similarity.normalize = "softmax"  # softmax, none: over the token weights
    config.similarity.mask_padding = True
    config.similarity.chunk_size = 16  # clips scored at a time; changes memory, no score

    config.data = ConfigDict()
    config.data.dataset = "folder"
    config.data.root = ""  # for `folder` and `shapes`: holds videos/ and captions.csv
    config.data.annotations = ""  # for the published data sets: their annotation files
    config.data.videos = ""  # for the published data sets: their video files
    # Which splits; msrvtt: 9k (""), 7k, full; vatex: the test list's name.
    config.data.protocol = ""
    # Share of the training videos that validates, where there is no such split (by seed and id).
    config.data.val_fraction = 0.0
    config.data.shards = ""  # written by `prepare`; empty: decode the video files
    config.data.exclude = ""  # a file with the ids of clips to leave out, one a line
    # `prepare` on a cluster: options of Apache Beam, such as "--runner=FlinkRunner ...".
    config.data.beam_options = ""
    config.data.max_frames = 12
    config.data.max_words = 24
    # Decoding processes; 0: threads of this process, and in `prepare` a process a core.
    config.data.workers = 0

    config.augment = ConfigDict()  # of training clips, one draw for all frames of a clip
    config.augment.rand_augment = ""  # such as rand-m7-n4-mstd0.5-inc1; empty: none
    config.augment.crop = 1.0  # random resized crop: least share of the area; 1.0: none
    config.augment.flip = False  # left to right, of every other clip; captions stay as they are

    config.optim = ConfigDict()
    config.optim.learning_rate = placeholder(
        float
    )  # None: 1e-4 on a pretrained CLIP, 1e-3 from scratch
    config.optim.clip_learning_rate = placeholder(
        float
    )  # inside CLIP; None: 1e-7, or `rate` from scratch
    config.optim.weight_decay = 0.2
    config.optim.warmup_fraction = 0.1  # share of the schedule
    config.optim.max_grad_norm = 1.0
    config.optim.schedule_epochs = 0  # length of the schedule; 0: as long as the run

    config.train = ConfigDict()
    config.train.batch_size = 32  # over all devices
    config.train.epochs = placeholder(int)  # None: 5 on a pretrained CLIP
    config.train.steps = placeholder(int)  # None: `epochs` of them, or else 300 from scratch
    config.train.select_on = "val"  # val, test: the split that the best checkpoint is chosen by
    config.train.checkpoint_every = 100
    config.train.eval_every = placeholder(int)  # None: once an epoch, at most 5 times from scratch
    config.train.log_every = 10
    config.train.max_skipped_updates = (
        20  # updates in a row with a loss that is not finite: then it stops
    )
    config.train.stall_timeout = 1200.0  # without a step, a batch scored: then it ends; 0: never
    config.train.max_to_keep = 2  # newest checkpoints kept beside the best
    config.train.keep_period = 0  # and every one whose step this divides; 0: none
    # rsum (R@1 + R@5 + R@10 of both directions), or text_to_video/R@1, video_to_text/MdR, ...
    config.train.select_by = "rsum"

    config.eval = ConfigDict()
    config.eval.split = "test"
    config.eval.batch_size = 32  # on each device

    config.bench = "step"  # step, similarity, input, memory, plan
    # from:to, steps counted from 1: `train` writes their trace to workdir/profile; empty: none.
    config.profile = ""
    return config


def with_form(config: ConfigDict, form: str | None) -> ConfigDict:
    """The config as it is, or, of `FILE.py:reference`, as the original PyTorch code has it.

    Scores of the reference contain the answer: the weights of the words come from the caption
    that is paired with the video. Its checkpoint is chosen on the test split, as in much of the
    field, which makes figures optimistic. It is there to reproduce the original's figures.
    """
    if form is None:
        return config
    if form != "reference":
        raise ValueError(f"there is no form {form!r} of it, only 'reference'")
    config.similarity.word_weights = "paired"
    config.similarity.normalize = "none"
    config.similarity.mask_padding = False
    config.distill.noise = "always"
    config.optim.schedule_epochs = 5  # whatever train.epochs says
    config.data.max_frames = 12
    config.data.max_words = 24
    config.data.val_fraction = 0.0
    config.train.select_on = "test"
    return config
