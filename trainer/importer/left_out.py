"""Keys of other trainers that have no counterpart here, by what leaving them out means.

HARMLESS  logging, hub, trackers, workers, caches, kernels that compute the same: nothing that is learned changes
MEMORY    sharding, offloading and the like: the result is the same, but the run may not fit or be slower
CHANGES   what is learned would differ; the word says in what
"""

from __future__ import annotations

from typing import Any

TRACKER_PREFIXES = ("wandb_", "swanlab_", "mlflow_", "comet_", "trackio_", "otel_", "gradio_", "hf_mlflow_")
HARMLESS = frozenset(
    """
    do_train do_eval do_predict overwrite_output_dir plot_loss overwrite_cache disable_tqdm log_level debug
    log_level_replica log_on_each_node logging_dir logging_nan_inf_filter log_with include_for_metrics project
    include_num_input_tokens_seen include_tokens_per_second include_tkps include_inputs_for_metrics
    include_effective_tokens_per_second print_param_status skip_memory_metrics use_wandb use_swanlab use_mlflow
    use_comet use_tensorboard use_trackio use_otel_metrics use_legacy_prediction_loop prediction_loss_only
    label_names past_index hub_strategy hub_token hub_private_repo hub_always_push hub_revision hf_hub_token
    ms_hub_token om_hub_token hf_use_auth_token push_dataset_to_hub push_to_hub_token push_to_hub_model_id
    use_auth_token token tags dataloader_num_workers dataloader_pin_memory dataloader_prefetch_factor
    dataloader_persistent_workers dataloader_in_order dataloader_multiprocessing_context preprocessing_num_workers
    preprocessing_batch_size num_proc dataset_num_proc dataset_processes dataset_batch_size dataset_prepared_path
    dataset_keep_in_memory dataset_kwargs dataset_shard_num dataset_shard_idx num_dataset_shards_to_save
    skip_prepare_dataset data_shared_file_system tokenized_path dataset_dir media_dir cache_dir offload_folder
    remove_unused_columns length_column_name strict local_rank world_size device no_cuda use_cpu use_mps_device
    jit_mode_eval use_ipex tpu_num_cores tpu_metrics_debug half_precision_backend fp16_backend fp16_opt_level
    bf16_full_eval fp16_full_eval tf32 ddp ddp_timeout ddp_backend ddp_bucket_cap_mb ddp_broadcast_buffers
    ddp_find_unused_parameters ddp_static_graph accelerator_config use_ray ray_num_workers ray_init_kwargs
    ray_run_name resources_per_worker ray_scope gradient_checkpointing_kwargs use_reentrant_gc use_unsloth
    activation_checkpointing_kwargs
    use_unsloth_gc use_liger_kernel enable_liger_kernel liger_kernel_config liger_rope liger_rms_norm
    liger_rms_norm_gated liger_layer_norm liger_glu_activation liger_swiglu liger_cross_entropy
    liger_fused_linear_cross_entropy cut_cross_entropy chunked_cross_entropy chunked_cross_entropy_num_chunks
    lora_mlp_kernel lora_qkv_kernel lora_o_kernel lora_embedding_kernel use_kernels use_v1_kernels kernel_config
    flash_attn_cross_entropy flash_attn_rms_norm flash_attn_fuse_mlp flash_optimum flex_attn_compile_kwargs
    xformers_attention sdp_attention flex_attention sage_attention flash_attn_d512 large_head_attention
    sdpa_varlen fused_attn_kernel gemma4_hybrid_attn_impl use_scattermoe use_sonicmoe experts_implementation
    use_glm_dsa_kernels use_dsv4_kernels dsv4_fp4_grouped_mode nvfp4_merge_aware plugins torch_compile
    torch_compile_backend torch_compile_mode torch_compile_options deepcompile torchdistx_path
    torch_empty_cache_steps gc_steps gc_collect_steps eval_accumulation_steps eval_delay eval_on_start
    eval_do_concat_batches eval_use_gather_object batch_eval_metrics eval_table_size eval_max_new_tokens
    eval_sample_packing eval_causal_lm_metrics do_causal_lm_eval do_bench_eval bench_dataset bench_split
    eval_num_beams eval_on_each_dataset eval_sequence_len compute_accuracy predict_with_generate generate_samples
    num_generation_samples max_new_tokens top_k top_p temperature sample_backend save_on_each_node save_only_model
    save_first_step auto_resume_from_checkpoints restore_callback_states_from_checkpoint enable_jit_checkpoint
    loss_watchdog_threshold loss_watchdog_patience profiler_steps profiler_steps_start enable_torch_profiler
    average_tokens_across_devices full_determinism tokenizer_type tokenizer_use_fast tokenizer_legacy
    tokenizer_config tokenizer_save_jinja_files use_fast_tokenizer model_type model_class processor_kwargs
    base_model_config is_llama_derived_model is_falcon_derived_model is_mistral_derived_model
    is_qwen_derived_model low_cpu_mem_usage upcast_layernorm upcast_lmhead_output infer_backend infer_dtype
    use_kv_cache use_cache lora_fan_in_fan_out fan_in_fan_out peft_autocast_adapter_dtype autocast_adapter_dtype
    lora_on_cpu gptq_groupsize gptq_model_v1 gptq_disable_exllama inference_mode peft_version auto_mapping
    runtime_config megatron_config megatron_core pad_to_sequence_len pad_to_multiple_of sample_packing_bin_size
    sample_packing_group_size sample_packing_eff_est sample_packing_mp_start_method total_num_tokens device_map
    max_memory merge_lora test_value axolotl_config_path shuffle_merged_datasets experimental_skip_move_to_device
    ignore_pad_token_for_loss packing_strategy eval_packing  padding_side
    mp_parameters remove_columns random_state quantization_device_map init_config dispatch_batches split_batches
    unsloth_num_proc fast_inference gpu_memory_utilization max_lora_rank float8_kv_cache
    use_gradient_checkpointing temporary_location maximum_memory_usage qalora_group_size pissa_iter pissa_convert
    relora_prune_ratio relora_prune_method relora_cpu_offload jagged_restart_warmup_steps
    jagged_restart_anneal_steps asft_alpha eaft_alpha eaft_k pose_max_context_len pose_num_chunks
    scaling_softmax_factor freeze_trainable_modules
    """.split()  # noqa: SIM905
)
MEMORY = frozenset(
    """
    deepspeed fsdp fsdp_config fsdp_version fsdp_final_state_dict_type fsdp_transformer_layer_cls_to_wrap
    fsdp_min_num_params dist_config parallelism_config activation_offloading activation_checkpointing
    layer_offloading selective_checkpointing ple_cpu_offload gpu_memory_limit
    tiled_mlp tiled_mlp_num_shards dp_shard_size dp_replicate_size tensor_parallel_size context_parallel_size
    context_parapllel_size sequence_parallel_degree heads_k_stride ring_attn_func expert_parallel_size
    expert_parallel_num_nvl_bytes expert_parallel_token_capacity qlora_sharded_model_loading use_kt kt_weight_path
    kt_optimize_rule kt_expert_checkpoint_path quantize_moe_experts streaming buffer_size use_mca
    use_hyper_parallel offload_embedding auto_find_batch_size
    """.split()  # noqa: SIM905
)
_WORDS = {
    "rows": """
        mask_history roles_to_train train_on_eos train_on_eot excess_length_strategy min_sample_len
        curriculum_sampling sample_packing_sequentially dataset_exact_deduplication disable_shuffling
        shuffle_before_merging_datasets mix_strategy interleave_probs dataloader_drop_last
        train_sampling_strategy test_datasets use_pose neat_packing pretraining_dataset
        pretraining_sample_concatenation batch_flattening multipack_real_batches train_on_last_step_only
        max_prompt_len truncation_mode
    """,
    "tokens": """
        tokens added_tokens_overrides add_tokens add_special_tokens new_special_tokens
        new_special_tokens_config init_special_tokens resize_vocab resize_token_embeddings_to_32x
        mean_resizing_embeddings shrink_embeddings fix_untrained_tokens split_special_tokens eot_tokens
        tokenizer_use_mistral_common eos_token pad_token embeddings_skip_upcast trainable_token_indices
        peft_trainable_token_indices
    """,
    "template": """
        default_system default_system_message tool_format enable_thinking preserve_thinking reasoning_effort
        chat_template_kwargs formatting_func
    """,
    "adapter": """
        use_dora peft_use_dora init_lora_weights peft_init_lora_weights pissa_init loftq_bits loftq_config
        peft lora_bias alora_invocation_tokens alpha_pattern rank_pattern lora_rank_pattern lora_alpha_pattern
        layer_replication peft_layer_replication corda_config eva_config arrow_config use_qalora velora_config
        kasa_config monteclora_config lora_ga_config use_bdlora lora_model_dir adapter_name_or_path
        adapter_folder create_new_adapter relora jagged_restart_steps ensure_weight_tying
        peft_ensure_weight_tying
    """,
    "targets": """
        lora_target_parameters target_parameters layers_to_transform layers_pattern peft_layers_to_transform
        peft_layers_pattern exclude_modules unfrozen_parameters freeze_mm_modules freeze_vision_tower
        freeze_language_model freeze_multi_modal_projector finetune_vision_layers lisa_n_layers
        lisa_step_interval lisa_layers_attribute freeze_trainable_layers freeze_extra_modules
    """,
    "optimizer": """
        optim_args optim_target_modules loraplus_lr_ratio loraplus_lr_embedding embedding_lr
        embedding_lr_scale lr_groups lr_quadratic_warmup cosine_constant_lr_ratio lr_div_factor use_galore
        use_apollo use_badam use_adam_mini use_muon adam_beta3 adam_epsilon2
    """,
    "loss": """
        neftune_noise_alpha label_smoothing_factor use_dft_loss use_asft_loss use_eaft_loss use_eaft loss_type
        moe_aux_loss_coef aux_loss_coef router_aux_loss_coef
    """,
    "model": """
        load_in_fp8 rope_scaling model_config model_quantization_config
        model_quantization_config_kwargs llama4_linearized_experts shift_attn mixture_of_depths use_llama_pro
        scaling_softmax reinit_weights train_from_scratch fp8 fp8_config fp8_enable_fsdp_float8_all_gather
        fp8_backend qat fp32_norms fp32_norm_classes use_onebitllms block_diag_attn model_init_kwargs
    """,
}
# Values that are the default there, where it is not nothing.
DEFAULTS = {"train_sampling_strategy": "random", "init_lora_weights": True, "excess_length_strategy": "drop"}
CHANGES = {name: word for word, names in _WORDS.items() for name in names.split()}


# Weight -> its sentence.
WHY = {
    "harmless": "import.why.harmless",
    "memory": "import.why.memory",
    "rows": "import.why.rows",
    "tokens": "import.why.tokens",
    "template": "import.why.template",
    "adapter": "import.why.adapter",
    "targets": "import.why.targets",
    "optimizer": "import.why.optimizer",
    "loss": "import.why.loss",
    "model": "import.why.model",
    "unknown": "import.why.unknown",
}


def weight(key: str) -> str:
    """What leaving the key out means: "harmless", "memory", a word of CHANGES, or "unknown"."""
    if key in HARMLESS or key.startswith(TRACKER_PREFIXES):
        return "harmless"
    return "memory" if key in MEMORY else CHANGES.get(key, "unknown")


def is_default(key: str, value: Any) -> bool:
    """Whether a key is set to what it is anyway."""
    return is_off(value) or (key in DEFAULTS and DEFAULTS[key] == value)


def is_off(value: Any) -> bool:
    """Whether a value asks for nothing: null, false, zero, empty."""
    return value is None or value is False or value in ("", "none", "no", 0) or value in ([], {})
