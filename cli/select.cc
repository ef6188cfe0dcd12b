#include <algorithm>
#include <cstdio>

#include "cli/command.h"
#include "cli/named_files.h"
#include "common/file.h"
#include "planner/profile.h"

namespace moiety::cli {
namespace {

struct SelectFlags {
  std::string profile;
  std::string domains;
  std::int32_t keep = 0;
  std::string output;
  bool json = false;
};

Result<void> run_select(const SelectFlags& flags) {
  MOIETY_ASSIGN(const planner::Subset subset,
                select_from_profile(flags.profile, split_commas(flags.domains), flags.keep));
  MOIETY_TRY(write_file(flags.output, planner::subset_to_json(subset)));
  std::size_t fewest = SIZE_MAX, most = 0;
  for (const auto& layer : subset.experts_kept_per_layer) {
    if (!layer) continue;
    fewest = std::min(fewest, layer->size());
    most = std::max(most, layer->size());
  }
  if (flags.json) {
    print_json(boost::json::object{
        {"output", flags.output}, {"kept_per_layer_min", fewest}, {"kept_per_layer_max", most}});
  } else {
    const std::string count = fewest == most
                                  ? std::to_string(most)
                                  : std::to_string(fewest) + " to " + std::to_string(most);
    std::printf("kept %s experts per layer (shared ones included)\nwrote %s\n", count.c_str(),
                flags.output.c_str());
  }
  return {};
}

}  // namespace

Result<planner::Subset> select_from_profile(const std::string& file,
                                            const std::vector<std::string>& domains,
                                            std::int32_t keep) {
  MOIETY_ASSIGN(const std::string text, read_file(file));
  auto profile = planner::parse_profile(text);
  if (!profile) return with_context(file, profile.error());
  const auto shape = planner::shape_of(*profile);
  if (!shape) return with_context(file, shape.error());
  auto subset = planner::select_experts(*profile, *shape, domains, keep);
  if (!subset) return with_context(file, subset.error());
  return std::move(*subset);
}

void add_select(CLI::App& app, Chosen& chosen) {
  CLI::App* command = app.add_subcommand(
      "select", "Choose the experts that domains need, by mean gate probability");
  auto flags = std::make_shared<SelectFlags>();
  command->add_option("--profile", flags->profile, "Profile file (moiety profile)")->required();
  command
      ->add_option("--domains", flags->domains,
                   "Domains of the profile, A[,B]; several give the union")
      ->required();
  command
      ->add_option("--keep", flags->keep,
                   "Experts to keep per layer and domain, shared ones included")
      ->required();
  command->add_option("-o,--output", flags->output, "Subset file to write")->required();
  command->add_flag("--json", flags->json, "Print JSON");
  command->callback([flags, &chosen] { chosen.run = [flags] { return run_select(*flags); }; });
}

}  // namespace moiety::cli
