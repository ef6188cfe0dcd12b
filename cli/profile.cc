#include <openssl/evp.h>

#include <cstdio>

#include "cli/named_files.h"
#include "cli/offline.h"
#include "common/file.h"
#include "kernels/gate.h"
#include "planner/profile.h"

namespace moiety::cli {
namespace {

std::string sha256_hex(std::string_view data) {
  unsigned char digest[EVP_MAX_MD_SIZE];
  unsigned int size = 0;
  EVP_Digest(data.data(), data.size(), digest, &size, EVP_sha256(), nullptr);
  std::string hex;
  char byte[3];
  for (unsigned int i = 0; i < size; ++i) {
    std::snprintf(byte, sizeof byte, "%02x", digest[i]);
    hex += byte;
  }
  return hex;
}

struct ProfileFlags {
  ModelFlags model;
  std::vector<std::string> domains;  // NAME=FILE
  std::string output;
  std::int32_t max_tokens = 512;
};

/// Mean gate probabilities of one domain's documents.
Result<planner::DomainProfile> profile_domain(OfflineModel& offline,
                                              const NamedFile& domain,
                                              std::int32_t max_tokens,
                                              Progress& progress) {
  planner::DomainProfile profile;
  MOIETY_ASSIGN(const std::string content, read_file(domain.file));
  profile.text_sha256 = sha256_hex(content);
  MOIETY_ASSIGN(const std::vector<std::string> texts, read_texts(domain.file));
  const Architecture& arch = offline.checkpoint->architecture();
  std::vector<std::vector<double>> sums;
  for (const LayerDescription& layer : arch.layers) {
    sums.emplace_back(static_cast<std::size_t>(layer.moe.num_routed), 0.0);
  }
  StepOptions options;
  options.keep_gate_logits = true;
  for (std::size_t i = 0; i < texts.size(); ++i) {
    progress.update(domain.name + ": document " + std::to_string(i + 1) + " of " +
                    std::to_string(texts.size()));
    MOIETY_ASSIGN(const std::vector<std::int32_t> tokens,
                  document_tokens(offline, texts[i], max_tokens));
    MOIETY_TRY(run_sequence(
        offline, tokens, nullptr, SequenceChunk::Logits::kNone, options, 512,
        [&](std::int32_t, const StepResult& result) {
          for (std::size_t layer = 0; layer < sums.size(); ++layer) {
            const auto rows = static_cast<std::size_t>(arch.layers[layer].moe.gate_rows);
            std::vector<float> probabilities(sums[layer].size());
            for (std::size_t at = 0; at < result.gate_logits[layer].size(); at += rows) {
              kernels::softmax(
                  std::span(result.gate_logits[layer]).subspan(at, probabilities.size()),
                  probabilities);
              for (std::size_t e = 0; e < probabilities.size(); ++e)
                sums[layer][e] += probabilities[e];
            }
          }
        }));
    profile.tokens += static_cast<std::int64_t>(tokens.size());
  }
  if (profile.tokens == 0) {
    return fail(ErrorCode::kInvalidArgument, domain.file.string() + ": has no tokens");
  }
  for (std::vector<double>& layer : sums) {
    for (double& sum : layer) sum /= static_cast<double>(profile.tokens);
    if (layer.empty()) {
      profile.mean_prob.emplace_back(std::nullopt);  // a dense layer
    } else {
      profile.mean_prob.emplace_back(std::move(layer));
    }
  }
  return profile;
}

Result<void> run_profile(const ProfileFlags& flags) {
  MOIETY_ASSIGN(const std::vector<NamedFile> domains, parse_named_files("--domain", flags.domains));
  MOIETY_ASSIGN(OfflineModel offline, OfflineModel::load(flags.model, true));
  planner::Profile profile;
  profile.checkpoint = offline.checkpoint->fingerprint();
  profile.layers = offline.shape.layers;
  {
    Progress progress(!flags.model.json);
    for (const NamedFile& domain : domains) {
      MOIETY_ASSIGN(profile.domains[domain.name],
                    profile_domain(offline, domain, flags.max_tokens, progress));
    }
  }
  MOIETY_TRY(write_file(flags.output, planner::profile_to_json(profile)));
  boost::json::object tokens;
  for (const auto& [name, domain] : profile.domains) {
    tokens[name] = domain.tokens;
    if (!flags.model.json)
      std::printf("%-16s %8lld tokens\n", name.c_str(), static_cast<long long>(domain.tokens));
  }
  if (flags.model.json) {
    print_json(boost::json::object{
        {"output", flags.output}, {"checkpoint", profile.checkpoint}, {"tokens", tokens}});
  } else {
    std::printf("wrote %s\n", flags.output.c_str());
  }
  return {};
}

}  // namespace

void add_profile(CLI::App& app, Chosen& chosen) {
  CLI::App* command =
      app.add_subcommand("profile", "Measure which experts each domain's text uses");
  auto flags = std::make_shared<ProfileFlags>();
  flags->model.add_to(*command);
  command
      ->add_option("--domain", flags->domains,
                   "NAME=FILE.jsonl of calibration text; repeat for more domains")
      ->required();
  command->add_option("-o,--output", flags->output, "Profile file to write")->required();
  command->add_option("--max-tokens", flags->max_tokens, "Cut documents at this many tokens")
      ->check(CLI::Range(2, 1 << 20))
      ->capture_default_str();
  command->callback([flags, &chosen] { chosen.run = [flags] { return run_profile(*flags); }; });
}

}  // namespace moiety::cli
