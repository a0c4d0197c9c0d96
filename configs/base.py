"""Every key with its default. A key set to None is filled in when the run starts.

What replaces None depends on other keys (`hvp_jax/config/resolve.py`). The result is written to
the workdir's config.json, so that a run always records what it used.
"""

from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder


class UnknownForm(ValueError):
    """`FILE.py:FORM` names a form that the config does not have."""


def get_config() -> ConfigDict:
    config = ConfigDict()
    config.seed = 42  # of the initial weights, the order of examples, noise and augmentation
    config.parallel = "pmap"  # pmap, shard_map: how a step is distributed over devices
    config.fsdp = False  # shard_map only: shards weights and optimizer moments over devices
    # float32, bfloat16: the type in which the towers compute; float64: weights and moments too, to
    # compare a run with PyTorch's on a CPU.
    config.precision = "float32"
    # Where compiled programs are kept for the next start: a folder that all hosts see, a bucket
    # (gs://, s3://), none, or auto: compile_cache in the workdir on an accelerator, none on a CPU.
    config.compile_cache = "auto"

    config.model = ConfigDict()
    # ViT-B/32, ViT-B/16, ViT-L/14, tiny; None: that of the weights, or ViT-B/32 from scratch.
    config.model.variant = placeholder(str)
    # Side of a frame in pixels; None: that of the weights or the variant. Position embeddings
    # are resized to it.
    config.model.image_size = placeholder(int)
    # Layers of the vision tower, counted from 1, whose tokens are used; -1 is the last. None: those
    # recorded with the weights, or first, middle and last.
    config.model.taps = placeholder(tuple)
    # A workdir or a checkpoint that `port` reads; empty: random weights.
    config.model.weights = ""
    # quick_gelu, gelu: the activation of both towers; None: that of the weights, or quick_gelu from
    # scratch. Needed only where nothing in or beside the weights states it.
    config.model.activation = placeholder(str)
    # Freezes the patch convolution; None: true on a pretrained CLIP, false from scratch.
    config.model.freeze_patches = placeholder(bool)
    # The vision tower and the distillation's attention with kernels for TPUs, of
    # `hvp_jax/models/kernels/`; None: on a TPU with precision=bfloat16.
    config.model.fused = placeholder(bool)
    config.model.remat = "dots"  # none, dots, full: how much the backward pass recomputes

    config.distillation = ConfigDict()
    config.distillation.stages = placeholder(
        int
    )  # of token merging; None: as the weights have, or 3
    # dpc_knn, kmeans, top_score, average_pool, none: how a stage chooses the tokens that it keeps.
    config.distillation.method = "dpc_knn"
    config.distillation.attention = True  # the merged tokens attend to the tokens before merging
    config.distillation.conv = True  # a convolution over neighbouring tokens before clustering
    config.distillation.noise = "train"  # train, always, never: noise that breaks ties of density

    config.frames = ConfigDict()
    # none, transformer, lstm: what the frames' features pass through before the score, as in
    # CLIP4Clip.
    config.frames.aggregation = "none"

    config.similarity = ConfigDict()
    # Of word_patch, sentence_patch, sentence_frame, sentence_clip: the terms of the score, the loss
    # and the evaluation.
    config.similarity.terms = ("word_patch", "sentence_patch", "sentence_frame")
    config.similarity.tap_weights = "uniform"  # uniform, learned: of the taps in every term
    config.similarity.token_weights = "learned"  # learned, uniform: of words, patches and frames
    # query: words are weighted by their own caption; paired: by the video's (leaks the answer).
    config.similarity.word_weights = "query"
    config.similarity.normalize = "softmax"  # softmax, none: of the token weights
    config.similarity.mask_padding = True  # excludes padding tokens from the similarity
    config.similarity.chunk_size = 16  # clips scored at a time; affects memory, not the scores

    config.loss = ConfigDict()
    # per_term: InfoNCE of every term and tap, summed; summed_score: InfoNCE of their sum, which is
    # what evaluation ranks by.
    config.loss.form = "per_term"
    # negative, ignored, positive: what captions of one clip that meet in a batch are to each other.
    # ignored: no wrong answers; positive: all of them right answers, with their mean loss (SupCon).
    config.loss.same_video = "negative"

    config.data = ConfigDict()
    config.data.dataset = "folder"  # folder, shapes, or a published data set such as msrvtt
    config.data.root = ""  # of `folder` and `shapes`: holds videos/ and captions.csv
    config.data.annotations = ""  # of a published data set: the folder of its annotation files
    config.data.videos = ""  # of a published data set: the folder of its video files
    # Which splits; msrvtt: "" (9k), 7k, full; vatex: the name of the test list.
    config.data.protocol = ""
    # Fraction of the training videos used for validation if the data set has no such split
    # (selected by val_seed and id).
    config.data.val_fraction = 0.0
    config.data.val_seed = placeholder(int)  # None: seed; shards are of one val_seed
    config.data.shards = ""  # the folder that `prepare` wrote; empty: decode the video files
    config.data.exclude = ""  # a file with the ids of clips to exclude, one per line
    # `prepare` on a cluster: options of Apache Beam, such as "--runner=FlinkRunner ...".
    config.data.beam_options = ""
    config.data.max_frames = 12  # of a clip
    # Which frames of a clip. uniform: one per second, thinned evenly; head: the first ones of one
    # per second; random_in_segment: in training one at random in each of equal segments, decoded
    # anew in every epoch, and uniform in evaluation. Shards have uniform frames only.
    config.data.frame_choice = "uniform"
    # pairs, videos: an epoch has every caption, or one random caption of every clip.
    config.data.sampling = "pairs"
    config.data.max_words = 24  # tokens of a caption, start and end included
    # Decoding processes; 0: threads of this process, and in `prepare` one process per core.
    config.data.workers = 0

    config.augment = ConfigDict()  # of training clips; all frames of a clip are treated alike
    config.augment.rand_augment = ""  # such as rand-m7-n4-mstd0.5-inc1; empty: none
    config.augment.crop = 1.0  # random resized crop: smallest fraction of the area; 1.0: none
    config.augment.flip = False  # mirrors half of the clips, whatever their captions say

    config.optimizer = ConfigDict()
    # bert_adam, adamw, lion, muon. Lion needs a third to a tenth of the others' learning rates.
    config.optimizer.name = "bert_adam"
    # warmup_cosine, warmup_linear, warmup_constant: of the learning rates.
    config.optimizer.schedule = "warmup_cosine"
    # all, none, last:N: the layers of CLIP's towers that learn. With none only CLIP's temperature
    # does; with last:N also the final norms and the projections, but not the embeddings.
    config.optimizer.clip_layers = "all"
    # Factor of the learning rate from a layer of CLIP's towers to the one before it; the embeddings
    # count as the layer before the first.
    config.optimizer.layer_decay = 1.0
    # Of the parameters outside CLIP; None: 1e-4 on a pretrained CLIP, 1e-3 from scratch.
    config.optimizer.learning_rate = placeholder(float)
    # Of CLIP's parameters; None: 1e-7 on a pretrained CLIP, `learning_rate` from scratch.
    config.optimizer.clip_learning_rate = placeholder(float)
    config.optimizer.weight_decay = 0.2  # decoupled; not of biases
    config.optimizer.warmup_fraction = 0.1  # of the schedule's steps
    config.optimizer.max_grad_norm = 1.0  # the gradient is clipped to this global norm
    config.optimizer.schedule_epochs = 0  # length of the schedule; 0: that of the run

    config.train = ConfigDict()
    config.train.batch_size = 32  # over all devices
    config.train.epochs = placeholder(int)  # None: 5 on a pretrained CLIP, or as `steps` need
    config.train.steps = placeholder(int)  # None: those of `epochs`, or 300 from scratch
    config.train.select_on = "val"  # val, test: the split that the best checkpoint is selected on
    config.train.checkpoint_every = 100  # steps
    # Steps; None: once per epoch, or about five times per run from scratch.
    config.train.eval_every = placeholder(int)
    config.train.log_every = 10  # steps
    config.train.max_skipped_updates = 20  # the run stops after so many non-finite losses in a row
    config.train.stall_timeout = 1200.0  # seconds without progress until the run ends; 0: never
    config.train.max_to_keep = 2  # the newest checkpoints, besides the best
    config.train.keep_period = 0  # also keeps every step that is a multiple of it; 0: none
    # rsum (R@1 + R@5 + R@10 of both directions), text_to_video/R@1, video_to_text/MdR, ...
    config.train.select_by = "rsum"

    config.eval = ConfigDict()
    config.eval.split = "test"  # train, val, test
    config.eval.batch_size = 32  # on each device

    config.bench = "step"  # step, similarity, input, memory, plan, tpu: what `bench` measures
    # Of `bench=tpu`, the slices to compile for: generation and chips along each axis, such as
    # v5e:4x4; 2xv5e:4x4 is two such slices at once; several are separated by commas. v4, v5e, v5p,
    # v6e.
    config.topology = "v5e:2x2"
    # "from:to", steps counted from 1, whose trace `train` writes to workdir/profile; empty: none.
    config.profile = ""
    return config


def with_form(config: ConfigDict, form: str | None) -> ConfigDict:
    """The config itself, or for `FILE.py:reference` the settings of the original PyTorch code.

    The reference scores leak the answer: the weights of the words come from the caption that is
    paired with the video. Its checkpoint is selected on the test split, as is common in the
    field, which makes metrics optimistic. It exists to reproduce the original's metrics.
    """
    if form is None:
        return config
    if form != "reference":
        raise UnknownForm(f"there is no form {form!r}, only 'reference'")
    config.similarity.word_weights = "paired"
    config.similarity.normalize = "none"
    config.similarity.mask_padding = False
    config.distillation.noise = "always"
    config.optimizer.schedule_epochs = 5  # whatever train.epochs says
    config.data.max_frames = 12
    config.data.max_words = 24
    config.data.val_fraction = 0.0
    config.train.select_on = "test"
    return config
