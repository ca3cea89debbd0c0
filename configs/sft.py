"""The default experiment, to be forked: full fine-tuning, or LoRA with `--config=configs/sft.py:lora`.

Every field can be overridden: `--config.optimizer.learning_rate=2e-5`. Durations take any unit: `"60 steps"`,
`"2000 examples"`, `"1e6 tokens"`, `"3 epochs"`; those of the warm-up also `"3 percent"` of the run.
"""

from ml_collections import ConfigDict


def get_config(arg: str = "full") -> ConfigDict:
    """The config.

    Args:
        arg: `full` trains all weights, `lora` adapters beside frozen weights.
    """
    if arg not in ("full", "lora"):
        raise ValueError(f"configs/sft.py:{arg}: give ':full' or ':lora'")
    config = ConfigDict()
    config.seed = 0  # of the order of examples, fresh adapters, dropout, noise and rounding
    config.duration = "1 epochs"  # of the run; any unit
    # A kept checkpoint of another run to go on from, with its moments and its place in the data, by a decay of this
    # run's own: "runs/x:8000". The steps before it count in config.duration; see docs/continued.md. Empty: none.
    config.branch = ""

    config.model = ConfigDict()
    config.model.source = "smollm2-135m-instruct"  # directory, .gguf file, hub name, short name, run
    config.model.revision = ""  # of a hub name: branch, tag or commit
    config.model.chat_template = ""  # file with a Jinja template for all conversations; empty: the checkpoint's own
    # Tokens of a text at most, prompt and answer together; 0: what the checkpoint's config says. Models with rotary
    # positions take another number: it is a limit, and changes no frequency. Learned positions end with their table.
    config.model.max_positions = 0
    # Special tokens to add: ("<|tool|>", "<|end|>"). Their embeddings begin at the mean of the others, and
    # so does the head; all weights are trained, or under config.adapter.train_new_tokens only what is theirs.
    config.model.new_tokens = ()
    # They count where contents spell them too; False: where the chat template writes them, as other special tokens do.
    config.model.new_tokens_in_contents = True
    # "score": in the place of the vocabulary head one that makes a number of a text (configs/reward_model.py).
    config.model.head = "vocabulary"

    config.data = ConfigDict()
    config.data.train = ""  # file, pattern, saved data set or name of the hub, see docs/data.md
    # In place of `train`, several sources: config.data.mixture.math = source("math.jsonl", weight="1"), and so on.
    config.data.mixture = ConfigDict()
    config.data.mixture_packing = "after"  # mixing: sources share sequences; or "before": each has one source
    config.data.held_out = ""  # the same, for held-out loss and samples; empty: none
    config.data.reading = reading()
    # What templates write as today: "2026-01-31"; empty: the day of the run's first start, which the run keeps.
    config.data.date = ""
    # Steps through which training data go before they are rendered, in order: ("strip_whitespace", "fix_encoding",
    # "drop_exact_duplicates", "drop_answers_shorter_than=3"); all of them: docs/data.md.
    config.data.cleaning = ()
    config.data.benchmarks = ()  # files of prompts that must not be trained on, or "file=column of its prompts"
    config.data.fail_on = "error"  # findings of the data's checks that stop a run: "error", "warning" (both), "never"
    # Directory that keeps tokenized examples for the next run; "auto": ~/.cache/sft_jax/data; empty: none.
    config.data.cache = "auto"
    config.data.sequence_length = 1024  # in tokens; a batch is [sequences, sequence_length]
    # Several examples in a sequence, invisible to one another: "best_fit", "first_fit" or "sequential", which
    # keeps the order of the file; "none": one each.
    config.data.packing = "best_fit"
    config.data.max_examples_per_sequence = 0  # at most; 0: any number
    config.data.supervised_quantile = (
        0.95  # of supervised tokens in a sequence: sets the static size of the head's input
    )

    # Passages of a corpus that are put into the last question of every row, also of held-out ones, see docs/data.md.
    config.data.retrieval = retrieval()  # passages in the prompts of training and held-out rows

    config.data.masking = ConfigDict()  # what is trained
    config.data.masking.train_on = "assistant"  # or "last": its last turn, "all": every token, "user,assistant": roles
    config.data.masking.end_of_turn = "turn"  # of every trained turn; or "all": of every turn, "last", "none"
    # Empty thoughts that a template writes before answers without one (Qwen 3): "train" them, or "leave_out", so that
    # answers without thoughts do not teach a model that thinks to stop doing so.
    config.data.masking.empty_thinking = "train"
    # Where the chat template shows earlier turns otherwise (without reasoning): "refuse" the row, or "expand" it into
    # several, so that each turn is trained after what the model sees when it writes it.
    config.data.masking.history = "refuse"
    # Examples too long for a sequence: "drop", "error", "truncate_left", "truncate_right"; "split": text makes several.
    config.data.masking.too_long = "drop"

    config.batch = ConfigDict()
    config.batch.sequences = 8  # of the global batch: one optimizer step
    config.batch.micro_batches = 1  # parts into which it is split to save memory; the numbers stay the same

    config.objective = ConfigDict()
    # Or of answers that were judged, see docs/preference.md and configs/preference.py; or "policy_gradient", of answers
    # that the model samples and scorers judge, see docs/rlvr.md and configs/rlvr.py; or "forward_kl", "reverse_kl",
    # "jensen_shannon", of a teacher, see docs/distillation.md and configs/distillation.py.
    config.objective.name = "cross_entropy"
    # Or "examples": each example weighs the same; of policy_gradient each answer. Of that also "constant": a token
    # weighs the same in each step, however long the answers are.
    config.objective.normalize = "tokens"
    # Share of each target that goes to all tokens alike; of pairs, the share whose label is taken to be wrong.
    config.objective.label_smoothing = 0.0
    config.objective.z_loss = 0.0  # factor of log(Z)^2, which keeps logits from drifting
    # Factor of KL(base || model) on the supervised tokens, which keeps the model near what it started from; 0: none.
    # Under adapters the base is the same weights without them; without adapters it is a copy of what is trained, in
    # config.precision.frozen. Either way a step does another forward pass.
    config.objective.kl_to_base = 0.0
    config.objective.neftune_alpha = 0.0  # noise on embeddings in training (NEFTune: 5 to 15); 0: none
    config.objective.positions = "supervised"  # where the vocabulary head is computed; or "all"
    config.objective.head_chunk_tokens = 512  # of a device, at a time; 0: all at once

    # Of objectives of answers that were judged.
    config.objective.beta = 0.1  # factor of the difference of scores
    config.objective.margin = 0.0  # of simpo: by how much the scores are to differ (its gamma)
    config.objective.per_token = False  # scores are means over tokens, not sums
    config.objective.tail_weight = 1.0  # of tokens beyond the length of the shorter answer (LD-DPO)
    config.objective.sft_weight = 0.0  # factor of the negative log-likelihood a token of the chosen answer
    config.objective.desirable_weight = 1.0  # of kto: factor of the losses of answers that are wanted
    config.objective.undesirable_weight = 1.0  # of kto: of those that are not
    config.objective.centring = 0.0  # of reward: factor of (chosen + rejected)^2, which keeps scores around 0

    # Of policy_gradient.
    config.objective.clip_low = 0.2  # the ratio to the probability at sampling counts as at least 1 - clip_low
    config.objective.clip_high = 0.2  # and as at most 1 + clip_high
    # Factor of KL(model || what the run begins with), estimated on sampled tokens, by another forward pass; 0: none.
    config.objective.kl_weight = 0.0
    # Factor of a reward for each token, ln teacher(token) - ln model(token), beside those for answers; 0: none.
    config.objective.teacher_weight = 0.0

    # Of distillation.
    config.objective.temperature = 1.0  # by which the logits of both are divided; the divergence counts its square
    config.objective.teacher_share = (
        0.5  # of jensen_shannon: of the teacher, in the mixture that both are compared with
    )
    config.objective.cross_entropy_share = 0.0  # of the cross-entropy in the loss; the rest is the divergence's

    config.teacher = ConfigDict()  # of distillation, also by teacher_weight: the model that is imitated
    config.teacher.source = ""  # as config.model.source; of the same vocabulary
    config.teacher.revision = ""  # of a hub name: branch, tag or commit
    # 0: its weights are in the step, frozen, in config.precision.frozen. Above: its so many most likely tokens of every
    # target, and the rest as one outcome, are computed once before the first step, and kept in config.data.cache.
    config.teacher.top_k = 0

    config.rollouts = rollouts()  # of policy_gradient: the answers that are sampled

    config.experts = ConfigDict()  # of models that have some
    config.experts.balance_loss = 0.001  # factor of the loss that spreads tokens over experts; 0: none
    config.experts.capacity = (
        0.0  # an expert takes at most this many times its even share of a sequence; 0: all that come
    )

    config.adapter = ConfigDict()
    config.adapter.method = "none" if arg == "full" else "lora"  # or "dora", "pissa"
    # A PEFT directory to train on from: its adapter has method, ranks, targets, alpha and scaling; empty: none.
    config.adapter.initial = ""
    config.adapter.rank = 16  # of A [in, rank] and B [rank, out]
    config.adapter.ranks = ()  # other ranks by pattern, the first that matches: ("attention/.*=8",)
    config.adapter.alpha = 32.0
    config.adapter.scaling = "rank"  # the update is scaled by alpha / rank; "sqrt_rank": by alpha / sqrt(rank), rsLoRA
    config.adapter.dropout = 0.0  # share of an adapter's inputs that is left out in training
    config.adapter.targets = (
        "(attention|delta)/(query|key|value|output_gate|out|(query|key_value)_[ab])",
        "(ffn|experts|shared)/(gate|up|down)",
    )
    # Embeddings of config.model.new_tokens are trained beside the adapter; with method "none" they alone.
    config.adapter.train_new_tokens = False

    config.trained = ConfigDict()  # of the weights; under adapters all of them are frozen
    # Patterns; () for all. Biases: (".*/bias",); norms: (".*norm/scale", ".*norm/bias"); no embedding: ("layers/.*",).
    config.trained.weights = ()
    config.trained.last_layers = 0  # of those only what lies in the last k layers: no embedding, no head; 0: all

    config.optimizer = ConfigDict()
    config.optimizer.name = "adamw"  # or "adam8bit", "lion", "adafactor", "muon", "schedule_free"
    config.optimizer.learning_rate = 2e-5 if arg == "full" else 2e-4  # the peak, reached after the warm-up
    config.optimizer.schedule = "cosine"  # or "linear", "constant", "wsd": constant, with a decay at the end
    config.optimizer.warmup = "3 percent"  # of W steps: step k, from 1, has the rate k / W of the peak; none is at 0
    config.optimizer.final_share = 0.1  # of the peak learning rate: what the step after the last would have
    config.optimizer.decay = "20 percent"  # of wsd: the last steps of the run, in which the rate falls
    config.optimizer.decay_shape = "linear"  # of wsd: how it falls; or "sqrt": by the root of what is over of the decay
    config.optimizer.betas = (0.9, 0.95)  # read by all but adafactor; Lion's authors take (0.9, 0.99)
    config.optimizer.epsilon = 1e-8  # of every kind of Adam
    config.optimizer.momentum = 0.95  # of muon
    config.optimizer.decay_power = 0.8  # of adafactor: its second moment forgets at rate step^-power
    config.optimizer.weight_decay = 0.01  # not on norms, biases and sinks
    # Parameters with numbers of their own, the first group that matches: ("embedding: learning_rate_factor=0.1",
    # "layers/.*: weight_decay=0.1"). ("adapters/.*/b: learning_rate_factor=16",) is LoRA+.
    config.optimizer.groups = ()
    config.optimizer.clip_norm = 1.0  # global norm of the gradient; 0: no clipping
    config.optimizer.max_skipped_in_a_row = 5  # steps with a loss or gradient that is not finite before the run stops

    config.ema = ConfigDict()  # exponential moving average of what is trained, kept in checkpoints
    config.ema.decay = 0.0  # a step; 0: none
    config.ema.evaluate = False  # held-out metrics, samples and the best checkpoint are those of the average

    config.precision = ConfigDict()
    # Of trained weights and their moments. In "bfloat16" they take half the memory, and updates are rounded to them
    # stochastically, by bits that follow from seed and step; a moving average and adapters are always in float32.
    config.precision.params = "float32"
    # Of weights under adapters, of a teacher, and of the copy for config.objective.kl_to_base. "auto" is "bfloat16" on
    # accelerators and "float32" on CPUs when the run begins, and stays that wherever it goes on or its result is used.
    config.precision.frozen = "auto"
    # Kernels under adapters in few bits: "int8", "nf4" as in QLoRA, or "mxfp4": those of experts alone, as gpt-oss is
    # published, without rounding that; experts of other models are rounded.
    config.precision.quantized = "none"
    config.precision.matmul = "bfloat16"  # inputs of matrix products; accumulated in float32
    config.precision.activations = "auto"  # between matrix products; "auto" as above, or "float32", "bfloat16"
    # In which gradients of matrices are summed over devices, and those of layers' kernels kept up to the optimizer.
    # "bfloat16" halves what devices exchange, saves two bytes a trained parameter of the layers, and rounds each
    # product's gradient to 8 bits. Micro-batches are still summed in float32: their sum takes four bytes a parameter.
    config.precision.gradients = "float32"

    config.execution = ConfigDict()
    config.execution.layer_layout = "auto"  # or "scan", "unrolled"
    # What the backward pass computes again: "none" (nothing), "full" (all of a layer but its input), or all but what is
    # named: "attention" (what attention gives), "attention_products" (and the projections around it), "products" (and
    # those of the feed-forward part). "auto": the least for which there is memory.
    config.execution.remat = "auto"
    # True: on GPUs the step is compiled to the same bits each time, without sums in any order; slower. Without it a run
    # there does not go on exactly as if it had not been stopped. TPUs and CPUs do so anyway.
    config.execution.deterministic = False
    # "auto": by platform, "blocked" (CPUs), "splash" (TPUs), "triton" (GPUs); or "reference": all scores at once.
    config.execution.attention = "auto"

    config.mesh = ConfigDict()
    config.mesh.replica = 1  # sequences are split over it, parameters are not
    config.mesh.fsdp = -1  # sequences and parameters are split over it; -1: the devices that are left
    config.mesh.expert = 1  # experts of a mixture are split over it; everything else as over fsdp
    config.mesh.context = 1  # the tokens of a sequence are split over it, for long ones, and parameters as over fsdp
    config.mesh.tensor = 1  # heads, feed-forward width and vocabulary are split over it

    config.evaluation = evaluation()

    config.checkpoint = ConfigDict()
    config.checkpoint.every = "100 steps"  # and at the end
    config.checkpoint.keep_last = 1
    # Of wsd: the checkpoint at the end of the stable phase is saved, and kept for other decays (config.branch).
    config.checkpoint.keep_stable = True
    config.checkpoint.best_metric = "held_out/nll"  # its best checkpoint is kept too; empty: none
    config.checkpoint.best_is = "min"  # or "max"

    config.log = ConfigDict()
    config.log.every = 1  # steps

    config.loader = ConfigDict()
    config.loader.threads = 1  # that assemble batches; 0: the loop does it itself
    config.loader.batches_ahead = 4  # kept ready
    config.loader.tokenize_workers = -1  # processes that tokenize what takes seconds; -1: one a core; 0: none

    config.profile = ConfigDict()
    config.profile.start = 0  # first step to profile; 0: none
    config.profile.steps = 3

    # Copies of some defaults. A value that differs from its default was asked for, and is refused where nothing would
    # read it: by the objective, optimizer or schedule, without adapters, a mixture, a corpus, new tokens or frozen
    # weights, or where an adapter to begin with brings its own.
    config.defaults = ConfigDict()
    config.defaults.model = _copied(config.model, "new_tokens_in_contents")
    config.defaults.data = _copied(config.data, "mixture_packing")
    config.defaults.data.retrieval = _copied(config.data.retrieval, *config.data.retrieval)
    config.defaults.objective = _copied(
        config.objective,
        *("normalize", "label_smoothing", "z_loss", "kl_to_base", "positions"),
        *("beta", "margin", "per_token", "tail_weight", "sft_weight"),
        *("desirable_weight", "undesirable_weight", "centring"),
        *("clip_low", "clip_high", "kl_weight", "teacher_weight"),
        *("temperature", "teacher_share", "cross_entropy_share"),
    )
    config.defaults.teacher = _copied(config.teacher, *config.teacher)
    config.defaults.rollouts = _copied(config.rollouts, *(name for name in config.rollouts if name != "rewards"))
    config.defaults.precision = _copied(config.precision, "frozen")
    config.defaults.optimizer = _copied(
        config.optimizer,
        *("final_share", "decay", "decay_shape", "betas", "epsilon", "momentum", "decay_power"),
    )
    config.defaults.checkpoint = _copied(config.checkpoint, "keep_stable")
    config.defaults.adapter = _copied(
        config.adapter, "method", "rank", "ranks", "alpha", "scaling", "dropout", "targets"
    )
    return config.lock()


def _copied(config: ConfigDict, *names: str) -> ConfigDict:
    return ConfigDict({name: config[name] for name in names})


def source(
    path: str, *, weight: str | float = "", epochs: float = 0.0, replacement: bool = False, **options: object
) -> ConfigDict:
    """A source of `config.data.mixture`. All sources have a weight, or all have epochs.

    Args:
        path: as `config.data.train`.
        weight: share of what is drawn, relative to the others; or by step: "0: 1, 500: 0.25".
        epochs: how often each of its rows appears in an epoch of the mixture.
        replacement: with a weight: rows are drawn independently, and not each once before any comes again.
        options: of `config.data.reading`, for this source: `format="alpaca"`, for example.
    """
    config = ConfigDict()
    config.path = path
    config.weight = str(weight)
    config.epochs = float(epochs)
    config.replacement = replacement
    config.reading = reading()
    config.reading.update(options)
    return config


def rollouts() -> ConfigDict:
    """The answers that a run samples from the model that it trains, and what they are worth."""
    config = ConfigDict()
    config.prompts = 8  # rows of the data in a step
    config.group = 8  # answers to each
    config.temperature = 1.0  # of sampling, and of the log-probabilities that are trained
    config.max_new_tokens = 256  # of an answer, with its end
    config.slots = 0  # answers in progress at a time; 0: all of a step
    # What an answer is worth: config.rollouts.rewards.answer = reward("numeric", marker="####"), added up over entries.
    config.rewards = ConfigDict()
    # By how much an answer is better: "centred", than the mean of its group; "leave_one_out", than that of the others;
    # "group_std", "batch_std": than the mean of its group, in standard deviations of the group, or of the step.
    config.advantages = "centred"
    config.truncated = "leave_out"  # answers without an end: not trained; or "train"
    return config


def reward(scorer: str = "exact_match", *, metric: str = "", weight: float = 1.0, **options: object) -> ConfigDict:
    """An entry of `config.rollouts.rewards`.

    Args:
        scorer: one of SCORERS in sft_jax/evaluation/scorers, or `package.module:function`.
        metric: of what it measures; empty: whether the answer is right, or else the first that is better high.
        weight: factor of the metric.
        options: of the scorer, see docs/scorers.md.
    """
    config = ConfigDict()
    config.scorer = scorer
    config.scorer_options = ConfigDict(options)
    config.metric = metric
    config.weight = float(weight)
    return config


def evaluation() -> ConfigDict:
    """When and how a run measures itself, and what `python -m sft_jax.evaluate` does beside that."""
    config = ConfigDict()
    config.every = "100 steps"  # and at the start and the end
    # The run ends after so many evaluations in a row without a better config.checkpoint.best_metric; 0: never early.
    # The schedule of the learning rate knows nothing of that: "constant" suits it.
    config.patience = 0
    config.batch_sequences = 8  # rounded up so that the mesh divides it
    config.samples = 3  # answers to held-out prompts shown in TensorBoard; 0: none
    config.sample_tokens = 128  # of an answer, at most
    # What is asked and scored: config.evaluation.tasks.titles = task("titles.jsonl", scorer="json_extraction").
    config.tasks = ConfigDict()
    # When a run measures them: "200 steps", and at the start and the end; empty: at all evaluations.
    config.tasks_every = ""
    config.slots = 32  # answers in progress at a time; answers do not depend on it
    # By how much a score of a task with probe=True may be worse than the base's; more is exit status 4 of
    # `python -m sft_jax.evaluate`. 0: any drop is reported, none is refused.
    config.max_regression = 0.0
    # What the methods of `python -m sft_jax.evaluate --methods=…` put into prompts.
    config.few_shot = ConfigDict()
    config.few_shot.path = ""  # rows with answers, read as training rows; empty: config.data.train
    config.few_shot.examples = 2
    config.few_shot.choose = "seed"  # drawn from the shorter half; "first" rows; "nearest" to the question
    config.prompting = ConfigDict()
    config.prompting.instructions = ()  # the system message, or several of which the best is chosen
    config.prompting.development = ""  # rows on which it is chosen, with the first task's scorer
    config.retrieval = retrieval()  # of the method rag
    return config


def task(path: str = "", *, kind: str = "generate", scorer: str = "exact_match", **options: object) -> ConfigDict:
    """A task of `config.evaluation.tasks`: what is asked about the rows of a file, and how answers are scored.

    Args:
        path: as `config.data.held_out`, which is measured where it is empty, read as held-out rows are.
        kind: `generate`: an answer is written; `choose`: the most likely of given answers; `recite`: whether the row's
            answer is known by heart; `prefer`: whether the chosen answer of a pair is the likelier one; or
            `package.module:Class`.
        scorer: of written answers, one of SCORERS in sft_jax/evaluation/scorers, or `package.module:function`.
        options: of the entry or of its reading: `max_new_tokens=80`, `format="alpaca"`, `scorer_options={…}`.
    """
    config = ConfigDict()
    config.path = path
    config.kind = kind
    config.scorer = scorer
    config.scorer_options = ConfigDict()  # see docs/scorers.md
    config.rows = 0  # the first so many; 0: all
    config.match_thinking = False  # an exact match wants the thinking of the reference too
    config.max_new_tokens = 256
    config.samples = 1  # answers to each prompt, for pass@k
    config.temperature = 0.0  # 0: the most likely token each time
    config.top_k = 0
    config.top_p = 1.0
    config.choices = ()  # what is chosen from; empty: all answers that occur
    config.choices_column = ""  # with the choices of each row, a list
    config.choose_by = "logprob"  # of the whole answer; "per_token": divided by its tokens; "unconditional": less that
    #                               of the answer to an empty question
    config.loss = True  # measure the loss of the references too, in `python -m sft_jax.evaluate`
    config.relevant_column = ""  # with the ids of the documents that answer a row, to judge the search of method rag
    config.probe = False  # it asks what the model could do before: a drop there is forgetting
    config.reading = reading()
    for name, value in options.items():
        (config if name in config else config.reading)[name] = value
    return config


def retrieval() -> ConfigDict:
    """Passages of a corpus in prompts."""
    config = ConfigDict()
    config.corpus = ""  # files, pattern or directory of text, Markdown or rows; empty: no passages
    config.row_template = "{text}"  # of a document, from the columns of a row: "{question}\n{answer}"
    config.id_column = ""  # that names the documents of rows; empty: file and row
    config.chunk_words = 150  # of a passage, at most
    config.overlap_words = 30  # of successive chunks of a document, at most
    config.method = "bm25"  # by words; "dense": by vectors (requirements-dense.txt); "hybrid": by both
    config.passages = 3  # in a prompt, at most
    config.template = "Passages:\n\n{passages}\n\nQuestion: {question}"
    config.passage_template = "[{number}] {text}"  # {document}: its id
    return config


def reading() -> ConfigDict:
    """How the rows of a data set are read; what is not given is found out, and shown."""
    config = ConfigDict()
    config.format = "auto"  # or one of FORMATS in sft_jax/data/formats: "messages", "alpaca", "table", …
    config.container = "auto"  # or one of CONTAINERS in sft_jax/data/files: "jsonl", "csv", "parquet", …
    config.subset = ""  # configuration of a data set of the hub
    config.split = ""  # of a data set that has several: "train", "train[:1000]"; of a JSON file: the name of an array
    config.held_out_split = ""  # the same for the held-out data; empty: as above; "none": those have no splits
    config.revision = ""  # of a data set of the hub: branch, tag or commit
    config.streaming = False  # read a data set of the hub over the network, without a copy on disk
    config.columns = ()  # renames: ("prompt=question", "completion=answer")
    config.id_column = ""  # that names the rows; empty: file and row
    config.weight_column = ""  # with the weight of a row; empty: 1
    config.group_column = ""  # with the slice of the data a row belongs to
    config.prompt_template = ""  # of a table, with its columns in braces: "Which intent? {text}"
    config.answer_template = ""  # "{category}"
    config.system = ""  # system message of conversations that have none
    # Keys of messages, of their parts and calls, and columns of images and sound, that are left out: ("timestamp",)
    config.ignore = ()
    config.label = "unanimous"  # that counts where several people annotated a row; or "majority", "adjudicated"
    config.ties = "error"  # where there is no majority; or "first" of the labels with most votes
    config.adjudicator = ""  # whose label counts under "adjudicated"; empty: the one marked as ground truth
    config.preference = "pairs"  # as they are, for objectives of pairs; "chosen": the chosen answers are imitated
    # What rows of text and segments end with: "eos": the end token, which is trained, so that the model learns to stop
    # there; "none": their own last token; empty: the same, with a warning.
    config.text_end = ""
    config.on_bad_row = "error"  # or "drop": rows that cannot be read are listed, and left out
    return config
