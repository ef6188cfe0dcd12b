#include <cstdio>
#include <iostream>
#include <thread>

#include "cli/admin_client.h"
#include "cli/command.h"
#include "cli/named_files.h"
#include "cli/operation.h"
#include "cli/up.h"
#include "common/file.h"
#include "common/ids.h"

namespace moiety::cli {
namespace json = boost::json;
namespace {

constexpr std::chrono::seconds kDownTimeout{60};

struct AdminFlags {
  std::string admin = "http://127.0.0.1:8001";
  bool json = false;
  void add_to(CLI::App& command) {
    command.add_option("--admin", admin, "Coordinator's admin address")
        ->envname("MOIETY_ADMIN")
        ->capture_default_str();
    command.add_flag("--json", json, "Print JSON");
  }
};

void add_status(CLI::App& app, Chosen& chosen) {
  CLI::App* command = app.add_subcommand(
      "status", "Show a running cluster: fleet, deployments, groups, what is lost");
  auto flags = std::make_shared<AdminFlags>();
  flags->add_to(*command);
  command->callback([flags, &chosen] {
    chosen.run = [flags]() -> Result<void> {
      MOIETY_ASSIGN(const json::value status, AdminClient(flags->admin).call("GET", "/v1/status"));
      if (flags->json) {
        print_json(status);
      } else {
        std::cout << format_status(status);
      }
      return {};
    };
  });
}

struct DeployFlags {
  AdminFlags admin;
  std::string name;
  std::string subset;
  std::string profile;
  std::string domains;
  std::int32_t keep = 0;
  bool full = false;
};

Result<void> run_deploy(const DeployFlags& flags) {
  if ((flags.subset.empty() ? 0 : 1) + (flags.profile.empty() ? 0 : 1) + (flags.full ? 1 : 0) !=
      1) {
    return fail(
        ErrorCode::kInvalidArgument,
        "deploy needs one of --subset FILE, --profile FILE with --domains and --keep, or --full");
  }
  if (flags.profile.empty() && (!flags.domains.empty() || flags.keep != 0)) {
    return fail(ErrorCode::kInvalidArgument,
                "--domains and --keep select from a profile: give --profile FILE with them");
  }
  json::object body{{"name", flags.name}};
  if (flags.full) {
    body["full"] = true;
  } else {
    std::string subset;
    if (!flags.subset.empty()) {
      MOIETY_ASSIGN(subset, read_file(flags.subset));
      if (auto parsed = planner::parse_subset(subset); !parsed) {
        return with_context(flags.subset, parsed.error());
      }
    } else {
      if (flags.domains.empty() || flags.keep == 0) {
        return fail(ErrorCode::kInvalidArgument,
                    "deploy --profile also needs --domains A[,B] and --keep K");
      }
      MOIETY_ASSIGN(const planner::Subset selected,
                    select_from_profile(flags.profile, split_commas(flags.domains), flags.keep));
      subset = planner::subset_to_json(selected);
    }
    boost::system::error_code ec;
    body["subset"] = json::parse(subset, ec);
    if (ec)
      return fail(ErrorCode::kInvalidArgument,
                  flags.subset + ": is not valid JSON: " + ec.message());
  }
  MOIETY_ASSIGN(const json::value done,
                run_operation(AdminClient(flags.admin.admin), "POST", "/v1/deployments",
                              json::serialize(body), !flags.admin.json));
  if (flags.admin.json) {
    print_json(done);
  } else {
    std::printf("%s is deployed; workers read %lld experts (%s) to have them together\n",
                std::string(done.at("served_as").as_string()).c_str(),
                static_cast<long long>(done.at("experts_loaded").to_number<std::int64_t>()),
                human_bytes(done.at("bytes_loaded").to_number<double>()).c_str());
  }
  return {};
}

void add_deploy(CLI::App& app, Chosen& chosen) {
  CLI::App* command =
      app.add_subcommand("deploy", "Serve a subset under MODEL:NAME on a running cluster");
  auto flags = std::make_shared<DeployFlags>();
  flags->admin.add_to(*command);
  command->add_option("name", flags->name, "Deployment name (the model's own name with --full)")
      ->required();
  command->add_option("--subset", flags->subset, "Subset file");
  command->add_option("--profile", flags->profile, "Profile file to select from");
  command->add_option("--domains", flags->domains, "Domains of the profile, A[,B]");
  command->add_option("--keep", flags->keep,
                      "Experts to keep per layer and domain, shared ones included");
  command->add_flag("--full", flags->full, "Deploy the full model");
  command->callback([flags, &chosen] { chosen.run = [flags] { return run_deploy(*flags); }; });
}

void add_undeploy(CLI::App& app, Chosen& chosen) {
  CLI::App* command = app.add_subcommand("undeploy",
                                         "Stop serving a deployment: new requests get 404, running "
                                         "ones finish, workers that nobody needs end");
  struct Flags {
    AdminFlags admin;
    std::string name;
  };
  auto flags = std::make_shared<Flags>();
  flags->admin.add_to(*command);
  command
      ->add_option("name", flags->name, "Deployment name; the model's own name for the full model")
      ->required();
  command->callback([flags, &chosen] {
    chosen.run = [flags]() -> Result<void> {
      MOIETY_ASSIGN(const json::value done,
                    run_operation(AdminClient(flags->admin.admin), "DELETE",
                                  "/v1/deployments/" + flags->name, "", !flags->admin.json));
      if (flags->admin.json) {
        print_json(done);
      } else {
        std::printf("%s is gone: %lld experts (%s) dropped by workers\n",
                    std::string(done.at("served_as").as_string()).c_str(),
                    static_cast<long long>(done.at("experts_dropped").to_number<std::int64_t>()),
                    human_bytes(done.at("bytes_dropped").to_number<double>()).c_str());
      }
      return {};
    };
  });
}

void add_down(CLI::App& app, Chosen& chosen) {
  CLI::App* command =
      app.add_subcommand("down", "End a running cluster: coordinator, routers and workers");
  auto flags = std::make_shared<AdminFlags>();
  flags->add_to(*command);
  command->callback([flags, &chosen] {
    chosen.run = [flags]() -> Result<void> {
      AdminClient admin(flags->admin);
      MOIETY_TRY(admin.call("POST", "/v1/shutdown"));
      const Deadline deadline = Clock::now() + kDownTimeout;
      while (admin.call("GET", "/health")) {
        if (interrupted()) return interrupted_error();
        if (Clock::now() > deadline) {
          return fail(ErrorCode::kDeadlineExceeded,
                      "the coordinator at " + flags->admin + " is still there after " +
                          std::to_string(kDownTimeout.count()) + " s");
        }
        std::this_thread::sleep_for(std::chrono::milliseconds(50));
      }
      if (flags->json) {
        print_json(json::object{{"stopped", true}});
      } else {
        std::printf("the cluster has ended\n");
      }
      return {};
    };
  });
}

}  // namespace

void add_cluster_commands(CLI::App& app, Chosen& chosen) {
  add_up(app, chosen);
  add_status(app, chosen);
  add_deploy(app, chosen);
  add_undeploy(app, chosen);
  add_down(app, chosen);
}

}  // namespace moiety::cli
