#include <algorithm>
#include <cstdio>

#include "cli/offline.h"
#include "model/sampler.h"

namespace moiety::cli {
namespace {

struct EvalFlags {
  ModelFlags model;
  std::vector<std::string> texts;
  std::string subset;
  std::int32_t max_tokens = 512;
  std::int32_t limit = 0;
};

struct Score {
  std::int64_t tokens = 0;  // predicted tokens
  double full_loss = 0;     // sums over predicted tokens, in nats
  double subset_loss = 0;
  std::int64_t agreed = 0;  // same top-1 token
  double masked_mass = 0;   // sum over scored rows
  void add(const Score& other) {
    tokens += other.tokens;
    full_loss += other.full_loss;
    subset_loss += other.subset_loss;
    agreed += other.agreed;
    masked_mass += other.masked_mass;
  }
};

std::int32_t top1(std::span<const float> logits) {
  return static_cast<std::int32_t>(std::max_element(logits.begin(), logits.end()) - logits.begin());
}

/// Scores one document under the full model, and under the mask if there is one.
Result<Score> score_document(OfflineModel& offline,
                             std::span<const std::int32_t> tokens,
                             const GateMask* mask) {
  Score score;
  const auto vocab = static_cast<std::size_t>(offline.model->architecture().vocab_size);
  std::vector<std::int32_t> full_choice(tokens.size());
  const auto each_prediction = [&](std::int32_t first, const StepResult& result, auto&& visit) {
    for (std::size_t row = 0; row < result.failed.size(); ++row) {
      const std::size_t position = static_cast<std::size_t>(first) + row;
      if (position + 1 >= tokens.size()) return;
      visit(position, std::span(result.logits).subspan(row * vocab, vocab),
            result.masked_mass[row]);
    }
  };
  MOIETY_TRY(run_sequence(
      offline, tokens, nullptr, SequenceChunk::Logits::kAll, {}, 256,
      [&](std::int32_t first, const StepResult& result) {
        each_prediction(first, result, [&](std::size_t at, std::span<const float> logits, float) {
          score.full_loss -= log_probability(logits, tokens[at + 1]);
          full_choice[at] = top1(logits);
          ++score.tokens;
        });
      }));
  if (mask == nullptr) return score;
  MOIETY_TRY(run_sequence(offline, tokens, mask, SequenceChunk::Logits::kAll, {}, 256,
                          [&](std::int32_t first, const StepResult& result) {
                            each_prediction(
                                first, result,
                                [&](std::size_t at, std::span<const float> logits, float mass) {
                                  score.subset_loss -= log_probability(logits, tokens[at + 1]);
                                  score.agreed += top1(logits) == full_choice[at] ? 1 : 0;
                                  score.masked_mass += mass;
                                });
                          }));
  return score;
}

/// What the rows show besides the full model's loss. `mass`: a physically pruned checkpoint has no
/// gate rows for what was removed, so nobody can tell how much was masked.
struct Columns {
  bool subset = false;
  bool mass = false;
};

boost::json::object to_json(const Score& score, const Columns& columns) {
  const auto n = static_cast<double>(std::max<std::int64_t>(score.tokens, 1));
  boost::json::object object{{"tokens", score.tokens}, {"loss_full", score.full_loss / n}};
  if (columns.subset) {
    object["loss_subset"] = score.subset_loss / n;
    object["loss_change"] = score.subset_loss / score.full_loss - 1;
    object["top1_agreement"] = static_cast<double>(score.agreed) / n;
    object["masked_mass"] = nullptr;
    if (columns.mass) object["masked_mass"] = score.masked_mass / n;
  }
  return object;
}

void print_row(const std::string& name, const Score& score, const Columns& columns) {
  const auto n = static_cast<double>(std::max<std::int64_t>(score.tokens, 1));
  std::printf("%-32s %8lld %10.4f", name.c_str(), static_cast<long long>(score.tokens),
              score.full_loss / n);
  if (columns.subset) {
    std::printf(" %10.4f %+8.2f%% %9.1f%%", score.subset_loss / n,
                100 * (score.subset_loss / score.full_loss - 1),
                100 * static_cast<double>(score.agreed) / n);
    if (columns.mass) {
      std::printf(" %11.3f", score.masked_mass / n);
    } else {
      std::printf(" %11s", "-");
    }
  }
  std::printf("\n");
}

Result<void> run_eval(const EvalFlags& flags) {
  MOIETY_ASSIGN(OfflineModel offline, OfflineModel::load(flags.model, true));
  std::unique_ptr<GateMask> mask;
  if (!flags.subset.empty()) {
    MOIETY_ASSIGN(const KeptExperts kept, load_subset(flags.subset, offline.shape));
    mask = make_gate_mask(kept, offline.checkpoint->architecture());
    if (mask == nullptr) {
      return fail(ErrorCode::kInvalidArgument,
                  flags.subset + ": keeps every expert, there is nothing to compare");
    }
  }
  const Columns columns{mask != nullptr, !offline.checkpoint->architecture().physically_pruned};
  boost::json::array files;
  Score total;
  if (!flags.model.json) {
    std::printf("%-32s %8s %10s", "text", "tokens", "full");
    if (columns.subset)
      std::printf(" %10s %9s %10s %11s", "subset", "change", "same top-1", "masked mass");
    std::printf("\n");
  }
  for (const std::string& file : flags.texts) {
    MOIETY_ASSIGN(std::vector<std::string> texts, read_texts(file));
    if (flags.limit > 0 && texts.size() > static_cast<std::size_t>(flags.limit)) {
      texts.resize(static_cast<std::size_t>(flags.limit));
    }
    Score score;
    {
      Progress progress(!flags.model.json);
      for (std::size_t i = 0; i < texts.size(); ++i) {
        progress.update(file + ": document " + std::to_string(i + 1) + " of " +
                        std::to_string(texts.size()));
        MOIETY_ASSIGN(const std::vector<std::int32_t> tokens,
                      document_tokens(offline, texts[i], flags.max_tokens));
        MOIETY_ASSIGN(const Score one, score_document(offline, tokens, mask.get()));
        score.add(one);
      }
    }
    if (score.tokens == 0)
      return fail(ErrorCode::kInvalidArgument, file + ": has no text of two tokens");
    if (flags.model.json) {
      boost::json::object object = to_json(score, columns);
      object["text"] = file;
      files.push_back(std::move(object));
    } else {
      print_row(std::filesystem::path(file).filename().string(), score, columns);
    }
    total.add(score);
  }
  if (flags.model.json) {
    print_json(boost::json::object{{"files", files}, {"total", to_json(total, columns)}});
  } else if (flags.texts.size() > 1) {
    print_row("all", total, columns);
  }
  return {};
}

}  // namespace

void add_eval(CLI::App& app, Chosen& chosen) {
  CLI::App* command = app.add_subcommand(
      "eval", "Loss per token (nats) of the full model and of a subset, on the same text");
  auto flags = std::make_shared<EvalFlags>();
  flags->model.add_to(*command);
  command
      ->add_option("--text", flags->texts,
                   "JSONL file with a \"text\" in each line; repeat for more")
      ->required();
  command->add_option("--subset", flags->subset, "Subset file to compare with the full model");
  command->add_option("--max-tokens", flags->max_tokens, "Cut documents at this many tokens")
      ->check(CLI::Range(2, 1 << 20))
      ->capture_default_str();
  command->add_option("--limit", flags->limit, "Only the first documents of each file; 0 = all")
      ->check(CLI::Range(0, 1 << 30))
      ->capture_default_str();
  command->callback([flags, &chosen] { chosen.run = [flags] { return run_eval(*flags); }; });
}

}  // namespace moiety::cli
