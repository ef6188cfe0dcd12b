#include <cstdio>

#include "cli/offline.h"

namespace moiety::cli {
namespace {

struct LogitsFlags {
  ModelFlags model;
  std::string input;
  std::string output;
  std::string subset;
  std::string replay_gate;
  std::int32_t chunk_tokens = 512;
};

std::string gate_tensor(std::size_t layer) { return "gate_logits." + std::to_string(layer); }

/// Gate logits of every MoE layer from a file, [B, T, gate rows] each, checked against the model
/// and the ids; empty for dense layers.
Result<std::vector<std::vector<float>>> read_replay(const std::string& file,
                                                    const Architecture& arch,
                                                    std::int64_t batch,
                                                    std::int64_t length) {
  MOIETY_ASSIGN(const SafetensorsSet tensors, SafetensorsSet::open_file(file));
  std::vector<std::vector<float>> replay;
  for (std::size_t layer = 0; layer < arch.layers.size(); ++layer) {
    if (arch.layers[layer].is_dense()) {
      replay.emplace_back();
      continue;
    }
    const TensorInfo* info = tensors.find(gate_tensor(layer));
    const std::vector<std::int64_t> expected = {batch, length, arch.layers[layer].moe.gate_rows};
    if (info == nullptr || info->shape != expected) {
      return fail(ErrorCode::kInvalidArgument, file + ": needs a tensor " + gate_tensor(layer) +
                                                   " of shape [" + std::to_string(batch) + ", " +
                                                   std::to_string(length) + ", " +
                                                   std::to_string(expected[2]) + "]");
    }
    MOIETY_ASSIGN(std::vector<float> values, tensors.read_floats(gate_tensor(layer)));
    replay.push_back(std::move(values));
  }
  return replay;
}

Result<void> run_logits(const LogitsFlags& flags) {
  MOIETY_ASSIGN(const SafetensorsSet input, SafetensorsSet::open_file(flags.input));
  MOIETY_ASSIGN(const std::vector<std::int64_t> ids, input.read_integers("input_ids"));
  const std::vector<std::int64_t>& ids_shape = input.find("input_ids")->shape;
  if (ids_shape.size() != 2 || ids.empty()) {
    return fail(ErrorCode::kInvalidArgument,
                flags.input + ": input_ids must be of shape [B, T], with at least one token");
  }
  const std::int64_t batch = ids_shape[0];
  const std::int64_t length = ids_shape[1];
  MOIETY_ASSIGN(OfflineModel offline, OfflineModel::load(flags.model, false));
  const Architecture& arch = offline.checkpoint->architecture();
  std::vector<std::int32_t> tokens;
  for (std::int64_t id : ids) {
    if (id < 0 || id >= arch.vocab_size) {
      return fail(ErrorCode::kInvalidArgument, flags.input + ": input_ids has " +
                                                   std::to_string(id) + ", the vocabulary is " +
                                                   std::to_string(arch.vocab_size));
    }
    tokens.push_back(static_cast<std::int32_t>(id));
  }
  std::unique_ptr<GateMask> mask;
  if (!flags.subset.empty()) {
    MOIETY_ASSIGN(const KeptExperts kept, load_subset(flags.subset, offline.shape));
    mask = make_gate_mask(kept, arch);
  }
  std::vector<std::vector<float>> replay;
  if (!flags.replay_gate.empty()) {
    MOIETY_ASSIGN(replay, read_replay(flags.replay_gate, arch, batch, length));
  }

  std::vector<float> logits;
  std::vector<std::vector<float>> gates(arch.layers.size());
  Progress progress(!flags.model.json);
  for (std::int64_t row = 0; row < batch; ++row) {
    progress.update("row " + std::to_string(row + 1) + " of " + std::to_string(batch));
    const auto sequence = std::span(tokens).subspan(static_cast<std::size_t>(row * length),
                                                    static_cast<std::size_t>(length));
    StepOptions options;
    options.keep_gate_logits = true;
    std::vector<std::vector<float>> part;
    for (std::size_t layer = 0; layer < replay.size(); ++layer) {
      const auto stride = static_cast<std::size_t>(length * arch.layers[layer].moe.gate_rows);
      const auto all =
          std::span(replay[layer]).subspan(static_cast<std::size_t>(row) * stride, stride);
      part.emplace_back(all.begin(), all.end());
    }
    if (!replay.empty()) options.replay_gate = &part;
    // A replayed sequence goes through in one chunk: StepOptions has the rows of one step.
    const std::int32_t chunk =
        replay.empty() ? flags.chunk_tokens : static_cast<std::int32_t>(length);
    MOIETY_TRY(
        run_sequence(offline, sequence, mask.get(), SequenceChunk::Logits::kAll, options, chunk,
                     [&](std::int32_t, const StepResult& result) {
                       logits.insert(logits.end(), result.logits.begin(), result.logits.end());
                       for (std::size_t layer = 0; layer < gates.size(); ++layer) {
                         gates[layer].insert(gates[layer].end(), result.gate_logits[layer].begin(),
                                             result.gate_logits[layer].end());
                       }
                     }));
  }
  SafetensorsWriter writer;
  writer.add_floats("logits", {batch, length, arch.vocab_size}, logits);
  for (std::size_t layer = 0; layer < gates.size(); ++layer) {
    if (arch.layers[layer].is_dense()) continue;
    writer.add_floats(gate_tensor(layer), {batch, length, arch.layers[layer].moe.gate_rows},
                      gates[layer]);
  }
  MOIETY_TRY(writer.write(flags.output));
  if (flags.model.json) {
    print_json(boost::json::object{{"output", flags.output}, {"batch", batch}, {"length", length}});
  } else {
    std::printf("wrote %s: logits [%lld, %lld, %d] and the gate logits of %d layers\n",
                flags.output.c_str(), static_cast<long long>(batch), static_cast<long long>(length),
                arch.vocab_size, arch.num_moe_layers());
  }
  return {};
}

}  // namespace

void add_logits(CLI::App& app, Chosen& chosen) {
  CLI::App* command = app.add_subcommand(
      "logits", "Write logits and gate logits of given token ids, to compare with other engines");
  auto flags = std::make_shared<LogitsFlags>();
  flags->model.add_to(*command);
  command
      ->add_option("--input", flags->input,
                   "safetensors file with input_ids [B, T]; other tensors are ignored")
      ->required();
  command
      ->add_option("--output", flags->output,
                   "safetensors file to write: logits, gate_logits.L (F32)")
      ->required();
  command->add_option("--subset", flags->subset,
                      "Subset file: mask the experts that it leaves out");
  command->add_option("--replay-gate", flags->replay_gate,
                      "safetensors file with gate_logits.L: take the choice of experts from there "
                      "(weights are ours)");
  command
      ->add_option("--chunk-tokens", flags->chunk_tokens,
                   "Tokens per forward pass; the bits do not depend on it")
      ->check(CLI::Range(1, 1 << 20))
      ->capture_default_str();
  command->callback([flags, &chosen] { chosen.run = [flags] { return run_logits(*flags); }; });
}

}  // namespace moiety::cli
