#include "cli/offline.h"

#include <algorithm>

#include "common/file.h"

namespace moiety::cli {

namespace {

std::string kernel_names() {
  std::string names = "Kernel variant: auto";
  for (const kernels::Variant variant : kernels::kAllVariants)
    names.append(", ").append(kernels::variant_name(variant));
  return names;
}

}  // namespace

void add_dtype_flags(CLI::App& command, DType& dtype, std::optional<DType>& expert_dtype) {
  command
      .add_option_function<std::string>(
          "--dtype",
          [&dtype](const std::string& name) { dtype = name == "f32" ? DType::kF32 : DType::kBF16; },
          "Weights and GEMM inputs as bf16 (default) or f32")
      ->check(CLI::IsMember({"bf16", "f32"}));
  command
      .add_option_function<std::string>(
          "--expert-dtype",
          [&expert_dtype](const std::string& name) {
            expert_dtype = name == "int8" ? DType::kI8 : name == "f32" ? DType::kF32 : DType::kBF16;
          },
          "Routed experts as bf16, f32 or int8 (a scale per output channel); as --dtype unless "
          "given")
      ->check(CLI::IsMember({"bf16", "f32", "int8"}));
}

void ModelFlags::add_to(CLI::App& command) {
  command.add_option("-m,--model", model, "Checkpoint folder")->required();
  add_dtype_flags(command, dtype, expert_dtype);
  command.add_option("--kernels", kernels, kernel_names())->capture_default_str();
  command.add_option("--threads", threads, "Compute threads; 0 = one per core")
      ->check(CLI::Range(0, 1024))
      ->capture_default_str();
  command.add_flag("--json", json, "Print JSON");
}

Result<OfflineModel> OfflineModel::load(const ModelFlags& flags,
                                        bool needs_tokenizer,
                                        const KeptExperts* kept) {
  OfflineModel offline;
  MOIETY_ASSIGN(const kernels::Variant variant, kernels::choose_variant(flags.kernels));
  MOIETY_ASSIGN(Checkpoint checkpoint, Checkpoint::open(flags.model));
  offline.checkpoint = std::make_unique<Checkpoint>(std::move(checkpoint));
  if (needs_tokenizer) {
    MOIETY_ASSIGN(Tokenizer tokenizer, Tokenizer::load(flags.model));
    offline.tokenizer.emplace(std::move(tokenizer));
  }
  const std::string_view experts =
      flags.expert_dtype ? dtype_flag(*flags.expert_dtype) : std::string_view{};
  MOIETY_ASSIGN(const DType expert_dtype, expert_dtype_for(flags.dtype, experts));
  offline.shape = model_shape(*offline.checkpoint, expert_dtype);
  offline.pool = std::make_unique<ThreadPool>(flags.threads);
  offline.store = std::make_unique<ExpertStore>(*offline.checkpoint, expert_dtype);
  MOIETY_ASSIGN(offline.model,
                Model::load(*offline.checkpoint, flags.dtype, variant, *offline.pool));
  EpochView view;
  view.deployments.push_back(
      {"", kept != nullptr ? *kept : planner::keep_all(offline.shape), false});
  MOIETY_TRY(offline.store->load(needed_experts(view)));
  offline.experts = std::make_unique<LocalMoe>(*offline.store, variant, *offline.pool);
  return offline;
}

Result<void> run_sequence(OfflineModel& offline,
                          std::span<const std::int32_t> tokens,
                          const GateMask* mask,
                          SequenceChunk::Logits logits,
                          const StepOptions& options,
                          std::int32_t chunk_tokens,
                          const std::function<void(std::int32_t, const StepResult&)>& on_result) {
  const Architecture& arch = offline.model->architecture();
  const auto length = static_cast<std::int32_t>(tokens.size());
  if (length > arch.max_positions) {
    return fail(ErrorCode::kInvalidArgument, "a sequence of " + std::to_string(length) +
                                                 " tokens does not fit the model's context of " +
                                                 std::to_string(arch.max_positions));
  }
  const std::int32_t num_blocks = KvCache::blocks_for(length);
  KvCache kv(arch, offline.model->dtype(), std::max(num_blocks, 1));
  MOIETY_ASSIGN(const std::vector<std::int32_t> blocks, kv.allocate(num_blocks));
  for (std::int32_t first = 0; first < length; first += chunk_tokens) {
    if (interrupted()) return interrupted_error();
    const SequenceChunk chunk{
        tokens.subspan(static_cast<std::size_t>(first),
                       static_cast<std::size_t>(std::min(chunk_tokens, length - first))),
        first, blocks, mask, logits};
    const StepResult result = offline.model->forward({&chunk, 1}, kv, *offline.experts, options);
    if (any_failed(result)) return offline.experts->failure();
    on_result(first, result);
  }
  return {};
}

Result<std::vector<std::string>> read_texts(const std::filesystem::path& file) {
  MOIETY_ASSIGN(const std::string content, read_file(file));
  std::vector<std::string> texts;
  std::size_t line_number = 0;
  for (std::size_t begin = 0; begin < content.size();) {
    const std::size_t end = std::min(content.find('\n', begin), content.size());
    const std::string_view line(content.data() + begin, end - begin);
    begin = end + 1;
    ++line_number;
    if (line.find_first_not_of(" \t\r") == std::string_view::npos) continue;
    boost::system::error_code ec;
    const boost::json::value value = boost::json::parse({line.data(), line.size()}, ec);
    const boost::json::value* text =
        ec || !value.is_object() ? nullptr : value.get_object().if_contains("text");
    if (text == nullptr || !text->is_string()) {
      return fail(ErrorCode::kInvalidArgument,
                  file.string() + ":" + std::to_string(line_number) +
                      ": each line must be a JSON object with a string \"text\"");
    }
    texts.emplace_back(text->get_string());
  }
  if (texts.empty()) return fail(ErrorCode::kInvalidArgument, file.string() + ": has no texts");
  return texts;
}

Result<std::vector<std::int32_t>> document_tokens(const OfflineModel& offline,
                                                  const std::string& text,
                                                  std::int32_t max_tokens) {
  std::vector<std::int32_t> tokens;
  const std::vector<std::int32_t>& eos = offline.checkpoint->architecture().eos_ids;
  if (!eos.empty()) tokens.push_back(eos.front());
  MOIETY_ASSIGN(const std::vector<std::int32_t> encoded, offline.tokenizer->encode(text));
  tokens.insert(tokens.end(), encoded.begin(), encoded.end());
  const std::int32_t limit = std::min(max_tokens, offline.checkpoint->architecture().max_positions);
  if (tokens.size() > static_cast<std::size_t>(limit))
    tokens.resize(static_cast<std::size_t>(limit));
  return tokens;
}

}  // namespace moiety::cli
