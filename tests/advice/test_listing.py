"""Advice is listed: each text of the source that names a flag, a step or a command is followed here, or elsewhere."""

import pytest

from tests.advice import test_cleaning, test_commands, test_configs, test_data, test_reading, test_runs
from tests.advice.source import ROOT, SOURCES, advice_in

MODULES = (test_cleaning, test_commands, test_configs, test_data, test_reading, test_runs)

DECIDED = ("data/formats/test_annotations.py", "test_where_annotators_differ_it_is_decided_as_advised")
NAMED = ("data/rendering/test_named_templates.py", "test_without_a_default")
DRIFT = ("exports/test_model.py", "test_a_drift_beyond_the_tolerance_is_met_as_advised")
FORMAT = ("exports/test_model.py", "test_a_format_that_does_not_fit_is_refused_by_one_that_does")
GIVEN = ("training/test_given.py", "test_what_is_refused_is_made_anew_as_advised")
SHORT_RUNS = ("training/test_run_findings.py", "test_what_a_run_would_not_do_is_said_and_what_is_advised_does_it")
PATIENCE, WITHOUT = "training/test_early_stopping.py", "test_patience_without_anything_to_wait_for_is_refused"
NO_ADAPTER = ("runs/test_mix.py", "test_what_is_no_adapter_is_refused_and_merged_as_advised")
METHODS = ("evaluation/test_methods.py", "test_methods_that_there_are_not")
NEEDED = ("evaluation/test_side_by_side.py", "test_what_methods_need_is_asked_for_before_a_model_is_loaded")
PROBES = ("evaluation/test_side_by_side.py", "test_probes_are_of_weights_alone")
NO_TASK = ("evaluation/test_tasks.py", "test_an_entry_that_is_no_task_is_named")
GENERATED = ("test_generate.py", "test_what_is_refused_and_what_is_advised_is_done")
EVALUATED = ("test_evaluate.py", "test_a_mistake_is_one_message_and_no_result")
SWEEP_OF_ANOTHER = ("sweeps/test_directory.py", "test_the_directory_of_another_sweep_is_left_as_advised")
NO_SWEEP = ("sweeps/test_files.py", "test_what_is_wrong_in_a_sweep_file")
RUNGS = ("sweeps/test_halving.py", "test_runs_that_cannot_be_compared_are_refused_and_mended_as_advised")
NOT_WITH_A_SEARCH = ("test_sweep.py", "test_what_does_not_go_with_a_search_is_refused")
SWEEP_REPORT, STACKED = "sweeps/test_report.py", "training/stacked/test_fields.py"
METRIC = (SWEEP_REPORT, "test_any_metric_can_be_asked_for_and_what_there_is_is_named")
TOPOLOGIES = ("planning/test_topologies.py", "test_what_there_is_not_and_what_is_advised")
NO_COMPILER = ("planning/test_topologies.py", "test_the_requirements_that_are_named_are_there")
FEWER_DEVICES = ("planning/test_topologies.py", "test_emulated_devices_are_those_of_this_process")
WOULD_FIT = ("planning/test_plan.py", "test_what_would_fit_fits")
NO_TIMES = ("planning/test_search.py", "test_a_search_where_no_time_is_known")
PLANNED = "planning/test_plan.py"
AMOUNTS = (PLANNED, "test_amounts_without_data")
NOT_BOTH = ("test_plan.py", "test_flags_that_do_not_go_together")
NO_PAIRS = ("training/test_reference.py", "test_what_pairs_exclude_is_refused_and_what_is_advised_passes")
BRANCH, OTHER_SCHEDULE = "sft_jax/training/branch.py", "test_a_run_of_another_schedule_is_refused_and_used_as_advised"
IN_ITS_DECAY = "test_a_decay_that_began_before_the_checkpoint_is_refused_and_mended_as_advised"
LABELS = ("training/test_kto.py", "test_rows_of_another_kind_are_refused_and_what_is_advised_passes")
SCORES = ("training/test_reward_model.py", "test_what_it_cannot_do_is_refused")
EXCLUDED = (SCORES[0], "test_what_it_excludes_is_refused_and_what_is_advised_passes")
OF_ROLLOUTS = "training/rollouts/test_checks.py"
MENDED = (OF_ROLLOUTS, "test_what_is_advised_passes")
NO_ROLLOUTS = (OF_ROLLOUTS, "test_other_objectives_do_not_read_them")
ASKED = (OF_ROLLOUTS, "test_rows_are_asked_with_the_numbers_that_are_advised")
REWARDS = (OF_ROLLOUTS, "test_bad_rewards")
OF_TEACHERS, OF_SAMPLES = "training/test_distillation.py", "training/rollouts/test_teacher.py"
TEACHERS = (OF_TEACHERS, "test_what_a_run_with_a_teacher_refuses")
NO_TEACHER, JUDGED = (OF_TEACHERS, "test_no_teacher_is_named"), "test_what_is_refused_and_what_is_advised_passes"
OTHER_TESTS = {  # (file, part of its advice) -> the test that follows it
    ("sft_jax/models/quantization.py", ": this model has no experts, which alone are kept in MXFP4; give nf4"): (
        "models/test_mxfp4.py",
        "test_a_model_without_experts_has_none_in_mxfp4",
    ),
    ("sft_jax/preparation/judged.py", "a pair of answers is not an example to imitate"): (
        "training/test_preference.py",
        "test_they_are_refused_with_the_flag",
    ),
    ("sft_jax/preparation/judged.py", "compares two answers to a prompt"): (
        "training/test_preference.py",
        "test_rows_of_one_answer_are_refused_where_two_are_compared",
    ),
    ("sft_jax/preparation/judged.py", "an answer with a label is not an example to imitate"): LABELS,
    ("sft_jax/preparation/judged.py", "learns from answers that are wanted or not"): LABELS,
    ("sft_jax/preparation/judged.py", "and all other rows have the label"): (LABELS[0], "test_one_label_is_refused"),
    ("sft_jax/preparation/judged.py", "rows of several prompts"): (LABELS[0], "test_one_prompt_is_refused"),
    ("sft_jax/data/formats/labelled.py", "expected true or false (or 1 or 0)"): (
        "data/formats/test_formats.py",
        "test_labels_that_say_nothing",
    ),
    ("sft_jax/data/formats/preference.py", "expected a number, by how much"): (
        "data/formats/test_formats.py",
        "test_margins_that_are_none",
    ),
    ("sft_jax/exports/classifier.py", "Train with one more, --config.model.new_tokens"): (
        "exports/test_classifier.py",
        "test_where_no_special_token_is_left_one_is_added_as_advised",
    ),
    ("sft_jax/exports/source.py", "has a score head that is trained whole"): SCORES,
    ("sft_jax/runs/base.py", "is a reward model, which has no vocabulary head"): (
        SCORES[0],
        "test_another_run_begins_with_the_head_of_an_earlier_one",
    ),
    ("sft_jax/runs/base.py", "has a score head beside its adapter"): SCORES,
    ("sft_jax/score.py", "one pair has no interval; give several"): ("test_score.py", "test_one_pair_has_no_interval"),
    ("sft_jax/training/first_scores.py", "before the first step the head is zero"): (
        SCORES[0],
        "test_a_head_that_does_not_begin_at_zero_stops_a_run",
    ),
    ("sft_jax/training/pair_checks.py", "is of the other head; give"): EXCLUDED,
    ("sft_jax/training/pair_checks.py", "a reward model scores texts and writes none"): EXCLUDED,
    ("sft_jax/training/pair_checks.py", "is not read by --config.objective.name={name}; leave"): NO_PAIRS,
    ("sft_jax/training/pair_checks.py", "{what} (--config.objective.name={name})"): NO_PAIRS,
    ("sft_jax/training/pair_checks.py", "which this would change before the first step"): NO_PAIRS,
    ("sft_jax/training/pair_checks.py", "answers that are judged are never cut"): NO_PAIRS,
    ("sft_jax/training/pair_checks.py", "of a pair its answers are trained"): NO_PAIRS,
    ("sft_jax/training/reference.py", "before the first step the policy is its own reference"): (
        "training/test_reference.py",
        "test_values_of_other_weights_stop_a_run",
    ),
    (BRANCH, "only runs of wsd branch"): ("training/test_branch.py", OTHER_SCHEDULE),
    (BRANCH, "in place of --config.branch"): ("training/test_branch.py", OTHER_SCHEDULE),
    (BRANCH, "Give it the fields of that run"): ("training/test_branch.py", "test_other_fields_are_refused_by_name"),
    (BRANCH, "is in its decay after step {theirs.stable_until}"): (
        "training/test_branch.py",
        "test_a_checkpoint_of_the_decay_is_refused_and_one_before_it_is_advised",
    ),
    (BRANCH, "those before the branch included"): ("training/test_branch.py", IN_ITS_DECAY),
    (BRANCH, "before the checkpoint it is to begin with"): ("training/test_branch.py", IN_ITS_DECAY),
    (BRANCH, "and that run had {theirs.warmup_steps}"): (
        "training/test_branch.py",
        "test_another_warmup_is_refused_and_mended_as_advised",
    ),
    ("sft_jax/training/durations.py", "steps, and the run has {total}; give"): (
        "training/test_durations.py",
        "test_a_decay_longer_than_the_run_is_refused_and_mended_as_advised",
    ),
    ("sft_jax/training/run_findings.py", 'Give --config.optimizer.warmup="10 percent"'): SHORT_RUNS,
    ("sft_jax/training/effect.py", "all answers to each prompt were worth the same"): (
        "training/rollouts/test_run.py",
        "test_a_run_without_any_signal_says_so",
    ),
    ("sft_jax/training/rollouts/checks.py", "must be what reward(scorer, weight=…)"): REWARDS,
    ("sft_jax/training/rollouts/checks.py", "is empty: answers are worth nothing"): REWARDS,
    ("sft_jax/training/rollouts/checks.py", "must be a finite number that is not 0"): REWARDS,
    ("sft_jax/training/rollouts/checks.py", "the reward of an answer is compared"): (OF_SAMPLES, JUDGED),
    ("sft_jax/training/teacher_checks.py", "the answers of a step are drawn in it"): (OF_SAMPLES, JUDGED),
    ("sft_jax/training/teacher_checks.py", "is not read by --config.objective.name"): (
        OF_TEACHERS,
        "test_runs_without_a_teacher_do_not_read_one",
    ),
    ("sft_jax/training/teacher.py", "student and teacher share"): TEACHERS,
    ("sft_jax/training/teacher.py", "imitates a teacher; give a directory"): NO_TEACHER,
    ("sft_jax/training/teacher.py", "has another vocabulary than"): (
        OF_TEACHERS,
        "test_a_teacher_with_another_vocabulary_is_refused_by_name",
    ),
    ("sft_jax/training/teacher.py", "positions. --config.data.sequence_length"): (
        OF_TEACHERS,
        "test_a_teacher_with_too_few_positions",
    ),
    ("sft_jax/planning/asked.py", "a plan knows nothing of a teacher in the step"): (
        OF_TEACHERS,
        "test_a_plan_knows_no_teacher_in_the_step_and_what_is_advised_is_planned",
    ),
    ("sft_jax/training/rollouts/checks.py", "read where answers are sampled: each prompt"): MENDED,
    ("sft_jax/training/rollouts/checks.py", "probability with that when it was drawn"): MENDED,
    ("sft_jax/training/rollouts/checks.py", "leaves no room for a prompt in"): MENDED,
    ("sft_jax/training/rollouts/checks.py", "the last answer of a row is the reference"): MENDED,
    ("sft_jax/training/rollouts/checks.py", "is not read by --config.objective.name={name}; leave it"): NO_ROLLOUTS,
    ("sft_jax/training/rollouts/checks.py", "{FLAG}.{entry} is not read by --config.objective.name"): NO_ROLLOUTS,
    ("sft_jax/training/rollouts/checks.py", "='constant' is not read by --config.objective.name"): NO_ROLLOUTS,
    ("sft_jax/training/rollouts/rollout.py", "Leave such rows out, or give other numbers"): ASKED,
    ("sft_jax/training/rollouts/rollout.py", "or give fewer --config.rollouts.max_new_tokens"): (
        OF_ROLLOUTS,
        "test_a_model_that_rotates_long_texts_otherwise",
    ),
    ("sft_jax/plan.py", "--search and --compare: give one of them"): (
        "test_plan.py",
        "test_flags_that_do_not_go_together",
    ),
    ("sft_jax/planning/amounts.py", "leave --tokens out"): (PLANNED, "test_tokens_beside_a_duration_that_says_them"),
    ("sft_jax/planning/asked.py", "the model knows {known} positions; give fewer"): (
        PLANNED,
        "test_sequences_longer_than_the_model_knows",
    ),
    ("sft_jax/planning/fitting.py", "--config.{name}={value}"): WOULD_FIT,
    ("sft_jax/planning/fitting.py", "--topology={self.topology.name}"): WOULD_FIT,
    ("sft_jax/planning/report.py", "give --tokens, or --data, for hours and cost"): (
        PLANNED,
        "test_amounts_without_data",
    ),
    ("sft_jax/planning/search.py", "--config.{name}={value}"): (
        "planning/test_search.py",
        "test_a_search_finds_the_front",
    ),
    ("sft_jax/planning/search.py", "are not known; give --topology of a TPU or GPU"): NO_TIMES,
    ("sft_jax/planning/topologies.py", "must be installed: pip install -r requirements-plan.txt"): NO_COMPILER,
    ("sft_jax/planning/topologies.py", ": JAX has started with fewer CPU devices"): FEWER_DEVICES,
    ("sft_jax/planning/topologies.py", "expected KIND:SHAPE, for example"): TOPOLOGIES,
    ("sft_jax/planning/topologies.py", "no hardware is called {kind}. There are"): TOPOLOGIES,
    ("sft_jax/planning/topologies.py", ": a shape of no devices; give"): TOPOLOGIES,
    ("sft_jax/planning/topologies.py", "dimensions of chips: {hardware.name}:{like}, for example"): TOPOLOGIES,
    ("sft_jax/planning/topologies.py", "give even numbers for the first two, or one chip"): TOPOLOGIES,
    ("sft_jax/planning/topologies.py", "slices with a shape are TPUs; give a number"): TOPOLOGIES,
    ("sft_jax/planning/topologies.py", "of these; give fewer, or a multiple of that"): TOPOLOGIES,
    ("sft_jax/planning/topologies.py", "only TPUs have slices; leave that flag out"): TOPOLOGIES,
    ("sft_jax/sweep.py", "--only: a search chooses its runs itself"): NOT_WITH_A_SEARCH,
    ("sft_jax/sweep.py", "--launcher=list: its commands run to their end"): NOT_WITH_A_SEARCH,
    ("sft_jax/sweep.py", "needs the results of its jobs; give --wait"): NOT_WITH_A_SEARCH,
    ("sft_jax/sweeps/directory.py", "is not empty and holds no {FILE}"): SWEEP_OF_ANOTHER,
    ("sft_jax/sweeps/directory.py", "is the directory of another sweep"): SWEEP_OF_ANOTHER,
    ("sft_jax/sweeps/directory.py", "is a file: give a new --workdir"): (
        "sweeps/test_directory.py",
        "test_a_file_in_the_place_of_the_directory_is_refused",
    ),
    ("sft_jax/models/attention/choice.py", "--config.execution.attention={asked}: {reason}"): (
        "models/attention/test_choice.py",
        "test_what_cannot_be_is_refused_with_what_can",
    ),
    ("sft_jax/sweeps/search_record.py", "Name one of them in get_search()"): (
        "sweeps/test_halving.py",
        "test_a_metric_that_runs_did_not_measure_ends_the_search",
    ),
    ("sft_jax/training/gradient_check.py", "two micro-batches is not that of one"): (
        "training/test_gradient_check.py",
        "test_a_run_stops_before_its_first_step_and_goes_on_as_advised",
    ),
    ("sft_jax/sweeps/files.py", "expected a function"): NO_SWEEP,
    ("sft_jax/sweeps/files.py", "its get_sweep returned"): NO_SWEEP,
    ("sft_jax/sweeps/files.py", "its {name} {what}"): ("sweeps/test_files.py", "test_what_is_wrong_with_an_argument"),
    ("sft_jax/sweeps/files.py", "its get_search returned"): NO_SWEEP,
    ("sft_jax/sweeps/files.py", "of its get_sweep is"): NO_SWEEP,
    ("sft_jax/sweeps/halving.py", "SuccessiveHalving ends runs early itself"): RUNGS,
    ("sft_jax/sweeps/halving.py", "SuccessiveHalving counts in steps"): RUNGS,
    ("sft_jax/sweeps/search_record.py", "there are no held-out rows"): RUNGS,
    ("sft_jax/sweeps/halving.py", "A search that has begun takes no other runs"): (
        "sweeps/test_halving.py",
        "test_a_search_that_has_begun_takes_no_other_runs",
    ),
    ("sft_jax/sweeps/preparing.py", "--config.data.train is empty"): (
        "sweeps/test_dry_run.py",
        "test_without_training_rows_a_file_is_asked_for",
    ),
    ("sft_jax/sweeps/runs.py", "percent of the run makes no sense here"): (
        "sweeps/test_runs.py",
        "test_the_flag_of_a_message_is_taken",
    ),
    ("sft_jax/report.py", "expected final, best or 'step N'"): (
        "test_report.py",
        "test_a_value_is_taken_where_advised",
    ),
    ("sft_jax/sweep_run.py", ": expected a number from 0 to"): (
        "test_sweep_run.py",
        "test_a_run_is_chosen_by_a_number_or_a_name_that_is_advised",
    ),
    ("sft_jax/sweeps/launchers/listing.py", "--run={run.name}"): (
        "test_sweep_run.py",
        "test_the_list_has_a_command_for_each_run_that_is_not_done",
    ),
    ("sft_jax/sweeps/launchers/slurm.py", "give a --workdir on a file system that all hosts share"): (
        "sweeps/launchers/test_slurm_queue.py",
        "test_a_bucket_is_left_for_a_file_system_as_advised",
    ),
    ("sft_jax/sweeps/report/analysis.py", "; name more fields"): (
        SWEEP_REPORT,
        "test_a_baseline_that_several_are_like_gets_more_fields_as_advised",
    ),
    ("sft_jax/sweeps/report/analysis.py", "say --better=higher or --better=lower"): METRIC,
    ("sft_jax/sweeps/report/quantities.py", "which has one value a run; leave out --at"): (
        SWEEP_REPORT,
        "test_scores_of_evaluations_in_the_runs",
    ),
    ("sft_jax/sweeps/report/quantities.py", "there; near it, at steps"): (
        SWEEP_REPORT,
        "test_at_the_best_checkpoint_and_at_a_step",
    ),
    ("sft_jax/sweeps/report/reading.py", "give the directory that it lies in, or --compare"): (
        SWEEP_REPORT,
        "test_in_the_place_of_a_run_its_directory_is_given_or_it_is_compared_as_advised",
    ),
    ("sft_jax/training/stacked/fields.py", "ranks may not differ under"): (
        STACKED,
        "test_ranks_under_a_rule_that_looks_at_whole_matrices",
    ),
    ("sft_jax/training/stacked/loop.py", "Give a bound (1.25, for example"): (STACKED, "test_experts_without_a_bound"),
    ("sft_jax/training/stacked/loop.py", "whose losses are measured apart; expected as many in each"): (
        STACKED,
        "test_other_numbers_of_sources",
    ),
    ("sft_jax/training/stacked/loop.py", "Give --config.objective.positions=all to all of them"): (
        STACKED,
        "test_slots_of_every_token_beside_fewer",
    ),
    ("sft_jax/generate.py", "all are the same at --temperature=0; give"): GENERATED,
    ("sft_jax/generate.py", "chooses by what answers are worth: give --scorer"): GENERATED,
    ("sft_jax/generate.py", "a pair needs two answers; give more"): GENERATED,
    ("sft_jax/evaluate.py", "give --model, or --config with a model.source"): EVALUATED,
    ("sft_jax/evaluate.py", "holds a run, whose log would be replaced; give a directory"): EVALUATED,
    ("sft_jax/evaluation/methods.py", "--methods: give at least one"): METHODS,
    ("sft_jax/evaluation/methods.py", "are the same; give each once"): METHODS,
    ("sft_jax/evaluation/methods.py", "--methods={name}: "): METHODS,
    ("sft_jax/evaluation/side_by_side.py", "measure what weights forgot"): PROBES,
    ("sft_jax/evaluation/side_by_side.py", "all tasks are probes, which are measured with"): PROBES,
    ("sft_jax/evaluation/side_by_side.py", "method rag: give the corpus"): NEEDED,
    ("sft_jax/evaluation/side_by_side.py", "method prompted: give the instruction"): NEEDED,
    ("sft_jax/evaluation/side_by_side.py", "and the best is chosen on rows that are not measured"): NEEDED,
    ("sft_jax/evaluation/side_by_side.py", "is not read with a single instruction; leave it out"): NEEDED,
    ("sft_jax/evaluation/tasks/checks.py", "there are no rows to measure"): (
        "evaluation/test_tasks.py",
        "test_without_a_path_a_task_is_of_the_held_out_rows",
    ),
    ("sft_jax/evaluation/tasks/checks.py", "must be what task(path, scorer=…) of configs/sft.py makes"): NO_TASK,
    ("sft_jax/evaluation/tasks/checks.py", "is not read: the split of a task is"): NO_TASK,
    ("sft_jax/evaluation_flags.py", "a task without --config; set its fields instead"): EVALUATED,
    ("sft_jax/evaluation_flags.py", "config.evaluation.tasks is empty: there is nothing to measure"): EVALUATED,
    ("sft_jax/evaluation_flags.py", "give --data, the held-out rows, or --config with tasks"): EVALUATED,
    ("sft_jax/evaluation_flags.py", "method few_shot: give the rows that solved examples are"): EVALUATED,
    ("sft_jax/training/checks.py", "config.evaluation.tasks; leave it empty"): (
        "test_configs.py",
        "test_bad_values_name_their_flag",
    ),
    ("sft_jax/training/durations.py", "Give a multiple, or leave it empty for all of them"): (
        "training/test_tasks.py",
        "test_what_cannot_be_measured_is_refused",
    ),
    ("sft_jax/exports/source.py", "is its base, without an adapter for --format=peft"): NO_ADAPTER,
    ("sft_jax/exports/source.py", "a part of the update of a"): NO_ADAPTER,
    ("sft_jax/training/checks.py", "give --config.checkpoint.best_metric=held_out/nll"): (PATIENCE, WITHOUT),
    ("sft_jax/training/durations.py", "nothing is measured before the end; give '100 steps'"): (PATIENCE, WITHOUT),
    ("sft_jax/training/held_out.py", "nothing is measured that could get better; give --config.data.held_out"): (
        PATIENCE,
        "test_patience_without_held_out_data_is_refused",
    ),
    ("sft_jax/training/ending.py", "To go on with it all the same: a larger --config.evaluation.patience"): (
        PATIENCE,
        "test_more_patience_goes_on_as_advised",
    ),
    ("sft_jax/audit/checks/sizes.py", "drop_leading_answers"): (
        "preparation/test_dropped_advice.py",
        "test_conversations_cut_out_of_longer_ones",
    ),
    ("sft_jax/data/formats/annotations.py", ". Adjudicate it (--config.data.reading.label=adjudicated), or"): DECIDED,
    ("sft_jax/data/formats/annotations.py", ". Decide: --config.data.reading.label=majority or"): DECIDED,
    ("sft_jax/data/formats/annotations.py", "Mark it in the tool, or name who adjudicates:"): DECIDED,
    ("sft_jax/audit/preview/selection.py", ". Those that findings name are among them, and the longest;"): (
        "audit/preview/test_selection.py",
        "test_rows_that_findings_name_are_there",
    ),
    ("sft_jax/data/reading.py", "Give {FLAGS}held_out_split={NO_SPLIT}"): (
        "data/files/test_json_arrays.py",
        "test_held_out_rows_without_splits_beside_training_rows_with_some",
    ),
    ("sft_jax/preparation/mixing.py", "is not read: each source of {_FLAG} has options of its own"): (
        "preparation/test_mixing.py",
        "test_bad_values_name_their_flag",
    ),
    ("sft_jax/data/reading.py", "{FLAGS}{name}="): (
        "data/test_suggestions.py",
        "test_the_nearest_format_and_its_flags",
    ),
    ("sft_jax/data/rendering/named_templates.py", "; give one as a file, --config.model.chat_template"): NAMED,
    ("sft_jax/data/rendering/named_templates.py", "The tokenizer has no chat template"): (
        "training/test_advice.py",
        "test_a_model_without_a_chat_template",
    ),
    ("sft_jax/data/rendering/named_templates.py", "with tools: give the one that is meant as a file,"): NAMED,
    ("sft_jax/data/rendering/example_texts.py", "give --config.data.reading.text_end=none, and spell the token"): (
        "data/rendering/test_masking.py",
        "test_an_end_token_that_the_tokenizer_does_not_have",
    ),
    ("sft_jax/data/rendering/turns.py", "--config.data.masking.history=expand makes an example that ends with it"): (
        "data/rendering/test_chat_formats.py",
        "test_examples_are_refused_or_expanded_where_history_is_rewritten",
    ),
    ("sft_jax/data/rendering/turns.py", "before the template, in a file given as --config.model.chat_template"): (
        "data/rendering/test_generated_form.py",
        "test_a_thought_behind_a_prompt_without_one_is_refused",
    ),
    ("sft_jax/audit/report/__init__.py", "; python -m sft_jax.preview makes every check on all"): (
        "preparation/test_train_examples.py",
        "test_which_check_looked_at_how_many_records_is_said",
    ),
    ("sft_jax/data/tokenizing/workers.py", ". Where memory is short, give fewer"): (
        "data/tokenizing/test_workers.py",
        "test_a_killed_worker_is_an_error",
    ),
    ("sft_jax/exports/adapter.py", ", is nothing that peft loads. Make a directory of it, and"): (
        "exports/test_adapter.py",
        "test_a_base_that_peft_does_not_load_is_exported_as_the_note_says",
    ),
    ("sft_jax/exports/directory.py", ", so it is no earlier export: --force does not replace it"): (
        "exports/test_directory.py",
        "test_something_else_is_never_replaced",
    ),
    ("sft_jax/exports/directory.py", "exists; give another directory, or --force to replace an"): (
        "exports/test_directory.py",
        "test_an_earlier_export_is_replaced_only_by_force",
    ),
    ("sft_jax/exports/model.py", "the base's config.json has dtype"): (
        "exports/test_model.py",
        "test_a_dtype_that_weights_are_not_exported_in",
    ),
    ("sft_jax/exports/proof.py", ", or export this one in --dtype=float32"): (
        "exports/test_adapter.py",
        "test_numbers_that_a_dtype_does_not_hold",
    ),
    ("sft_jax/exports/proof.py", "export in --dtype=float32, or "): DRIFT,
    ("sft_jax/exports/proof.py", "of positions. Nothing was written. To go on"): DRIFT,
    ("sft_jax/exports/source.py", "): give {alone}--format=merged for the"): FORMAT,
    ("sft_jax/exports/source.py", "has no adapter, so there is nothing for --format="): FORMAT,
    ("sft_jax/exports/source.py", "has embeddings of new tokens, which --format=peft does not hold;"): (
        "exports/test_model.py",
        "test_new_tokens_are_merged",
    ),
    ("sft_jax/sources/hub.py", "Without a connection to the hub, give a local directory"): (
        "sources/test_locate.py",
        "test_without_a_connection_a_directory_or_a_file_will_do",
    ),
    ("sft_jax/sources/huggingface.py", "the weights are quantized"): (
        "training/test_advice.py",
        "test_checkpoints_in_few_bits_are_refused_by_name",
    ),
    ("sft_jax/runs/checkpoint_errors.py", ": else train again, with another --workdir or after removing"): (
        "runs/test_checkpoints.py",
        "test_a_large_file_cut_to_1000_bytes",
    ),
    (
        "sft_jax/runs/checkpoint_errors.py",
        "Use the code that saved it (its commit is in {self.workdir / ENVIRONMENT})",
    ): (
        "runs/test_checkpoints.py",
        "test_a_state_of_other_code_is_no_damage",
    ),
    ("sft_jax/models/vocabulary.py", "Use tokens that it has, as <unused0>"): (
        "models/test_gemma4.py",
        "test_new_tokens_are_refused_where_there_is_a_second_embedding",
    ),
    ("sft_jax/training/initial_adapter.py", "; leave it at {defaults[name]}, or give that"): (
        "training/test_initial_adapter.py",
        "test_flags_that_contradict_the_adapter",
    ),
    ("sft_jax/training/initial_adapter.py", "is for adapters, and --config.adapter.method=none; give"): (
        "training/test_initial_adapter.py",
        "test_flags_that_contradict_the_adapter",
    ),
    ("sft_jax/sweeps/launchers/pool.py", "if the machine was out of memory, give fewer --workers"): (
        "sweeps/launchers/test_pool.py",
        "test_a_worker_that_is_killed",
    ),
    ("sft_jax/preparation/measured.py", "Examples are whole under"): (
        "training/test_advice.py",
        "test_training_rows_that_are_all_too_long",
    ),
    ("sft_jax/training/run_findings.py", "An epoch is less than a step"): (
        "training/test_run_findings.py",
        "test_a_smaller_batch_is_named_where_devices_divide_it",
    ),
    ("sft_jax/runs/workdir.py", "), and without a lock two processes could train there. Give"): (
        "runs/test_metric_log.py",
        "test_a_directory_without_locks_is_refused",
    ),
    ("sft_jax/runs/workdir.py", ": give an empty or new --workdir"): (
        "runs/test_metric_log.py",
        "test_a_directory_of_something_else_is_refused",
    ),
    ("sft_jax/runs/workdir.py", "; to train on the adapter itself: python -m sft_jax.export"): (
        "exports/test_adapter.py",
        "test_training_goes_on_from_the_adapter_itself_as_advised",
    ),
    ("sft_jax/runs/workdir.py", "; wait for it, stop it, or give another --workdir"): (
        "runs/test_metric_log.py",
        "test_one_trainer_at_a_time",
    ),
    ("sft_jax/runs/workdir.py", "Give another --workdir, or the same config to continue that"): (
        "training/test_advice.py",
        "test_more_epochs_than_a_finished_run_has_had",
    ),
    ("sft_jax/runs/workdir.py", "To train its result on"): (
        "training/test_advice.py",
        "test_more_epochs_than_a_finished_run_has_had",
    ),
    ("sft_jax/runs/workdir.py", "found another one than process 0. Give a --workdir that all"): (
        "training/test_processes.py",
        "test_a_directory_that_the_hosts_do_not_share",
    ),
    ("sft_jax/runs/workdir.py", "put it back from a copy, or give another --workdir"): (
        "runs/test_metric_log.py",
        "test_a_damaged_config_is_put_back_or_left",
    ),
    ("sft_jax/preparation/retrieved.py", "Leave such rows out, or leave the corpus empty"): (
        "preparation/test_retrieved.py",
        "test_rows_that_ask_nothing_are_refused_by_name",
    ),
    ("sft_jax/preparation/retrieved.py", "Give the corpus that these questions are about, or leave"): (
        "preparation/test_retrieved.py",
        "test_a_corpus_in_which_nothing_is_found_is_refused",
    ),
    ("sft_jax/retrieval/corpus.py", "has no rows, so {FLAG}{option}="): (
        "preparation/test_retrieved.py",
        "test_options_of_rows_where_there_are_none_are_left_out_as_advised",
    ),
    ("sft_jax/retrieval/corpus.py", "expected an id, a text or a whole number, in"): (
        "retrieval/test_corpus.py",
        "test_ids_of_a_column",
    ),
    ("sft_jax/preparation/run_data.py", "the data that was given is of another config:"): GIVEN,
    ("sft_jax/runs/base.py", "--config.model.{name}="): GIVEN,
    ("sft_jax/training/durations.py", "comes to 0 steps: nothing would be trained"): (
        "training/test_durations.py",
        "test_a_run_of_no_step_is_refused",
    ),
    ("sft_jax/training/run_findings.py", 'Give --config.optimizer.warmup="3 percent"'): SHORT_RUNS,
    ("sft_jax/training/run_findings.py", "Give a --config.profile.start of at most"): SHORT_RUNS,
    ("sft_jax/training/run_findings.py", "Give --config.ema.decay="): SHORT_RUNS,
    ("sft_jax/training/run_findings.py", "Give --config.optimizer.clip_norm=1.0"): SHORT_RUNS,
    ("sft_jax/training/trained_parameters.py", "dropout is drawn in the projections"): (
        "training/test_loop.py",
        "test_dropout_that_nothing_draws_is_refused",
    ),
}
EXEMPT = {  # (file, part of it) -> why there is nothing to follow
    (
        "sft_jax/training/first_scores.py",
        "before the first step the head is zero",
    ): "the code is wrong where it is said",
    ("sft_jax/training/rollouts/checks.py", "{FLAG}.{name}: {error}"): "the beginning of what a scorer says",
    ("sft_jax/training/teacher.py", "its tokenizer and weights do not belong"): "a checkpoint that is not one",
    ("sft_jax/training/teacher_values.py", "gives it no finite probabilities"): "weights that are not finite",
    ("sft_jax/training/rollouts/rewards.py", "{FLAG}.{name}: {error}"): "likewise",
    ("sft_jax/options.py", "--config.evaluation.tasks.{name}.reading."): "the beginning of flags",
    ("sft_jax/data/reading.py", "--config.data.mixture.{name}.reading."): "the beginning of flags too",
    ("sft_jax/evaluation/scorers/instructions.py", "python -m nltk.downloader punkt_tab"): "it needs a download",
    ("sft_jax/preparation/mixing.py", "{_FLAG}.{name}"): "the beginning of flags that other texts say something of",
    ("sft_jax/sweeps/launchers/slurm_queue.py", "--name={','.join(by_name)}"): "an argument of squeue, and no text",
    ("sft_jax/training/stacked/fields.py", "--config.{name}: {', '.join(found)}"): (
        "the beginning of texts that say something of a field"
    ),
    (
        "sft_jax/planning/topologies.py",
        ": its compiler refuses it: {error}",
    ): "what libtpu says",
    ("sft_jax/sources/locate.py", ". Install it again: `pip install --force-reinstall"): "it needs a package index",
}


def test_all_advice_is_listed():
    listed = set().union(*(module.FOLLOWED for module in MODULES), OTHER_TESTS, EXEMPT)
    found = [(str(path.relative_to(ROOT)), text) for path in SOURCES for _, text in advice_in(path)]
    known = lambda file, text: any(of == file and part in text for of, part in listed)
    missing = [f"{file}: {text}" for file, text in found if not known(file, text)]
    assert not missing, "advice that no test follows; follow it in a table of tests/advice:\n" + "\n".join(missing)
    gone = [key for key in listed if not any(file == key[0] and key[1] in text for file, text in found)]
    assert not gone, f"no such advice is in the source any more: {gone}"


@pytest.mark.parametrize("test", OTHER_TESTS.values())
def test_tests_that_follow_advice_exist(test):
    path, name = test
    assert f"def {name}(" in (ROOT / "tests" / path).read_text()
