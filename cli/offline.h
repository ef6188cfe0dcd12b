#pragma once

#include <filesystem>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "checkpoint/checkpoint.h"
#include "cli/command.h"
#include "experts/store.h"
#include "model/model.h"
#include "model/tokenizer.h"
#include "router/embedded.h"

namespace moiety::cli {

/// --dtype and --expert-dtype; the values outlive parsing.
void add_dtype_flags(CLI::App& command, DType& dtype, std::optional<DType>& expert_dtype);

/// Flags of every command that loads a model into this process.
struct ModelFlags {
  std::filesystem::path model;
  DType dtype = DType::kBF16;
  std::optional<DType> expert_dtype;  ///< of routed experts, where it is not `dtype`
  std::string kernels = "auto";
  std::size_t threads = 0;
  bool json = false;
  void add_to(CLI::App& command);
};

/// A whole model in this process: dense part, experts, tokenizer (if the folder has one).
struct OfflineModel {
  std::unique_ptr<Checkpoint> checkpoint;
  std::optional<Tokenizer> tokenizer;
  std::unique_ptr<ThreadPool> pool;
  std::unique_ptr<ExpertStore> store;
  std::unique_ptr<Model> model;
  std::unique_ptr<LocalMoe> experts;
  planner::ModelShape shape;

  /// Loads dense weights and every routed expert (or those that `kept` names).
  static Result<OfflineModel> load(const ModelFlags& flags,
                                   bool needs_tokenizer,
                                   const KeptExperts* kept = nullptr);
};

/// Runs one sequence from position 0 in chunks of at most `chunk_tokens`, and hands over each
/// chunk's result with the chunk's first position. The cache is made for the sequence and freed
/// after it.
Result<void> run_sequence(
    OfflineModel& offline,
    std::span<const std::int32_t> tokens,
    const GateMask* mask,
    SequenceChunk::Logits logits,
    const StepOptions& options,
    std::int32_t chunk_tokens,
    const std::function<void(std::int32_t first, const StepResult&)>& on_result);

/// A text of a JSONL file: {"text": ..., ...} on each line.
Result<std::vector<std::string>> read_texts(const std::filesystem::path& file);

/// The tokens of a calibration document: EOS (if the model has one), then the text, cut at
/// max_tokens in all.
Result<std::vector<std::int32_t>> document_tokens(const OfflineModel& offline,
                                                  const std::string& text,
                                                  std::int32_t max_tokens);

}  // namespace moiety::cli
