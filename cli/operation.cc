#include "cli/operation.h"

#include <fmt/format.h>

#include <random>
#include <thread>

#include "cli/command.h"
#include "common/ids.h"

namespace moiety::cli {
namespace json = boost::json;
namespace {

// The coordinator has limits of its own for each part of a change; this one is for when it hangs.
constexpr std::chrono::minutes kTimeout{15};
constexpr std::chrono::seconds kCallTimeout{2};
constexpr std::chrono::milliseconds kPoll{50};
/// How long a coordinator that does not answer may take to come back; the first call has less
/// patience (AdminClient::kPatience).
constexpr std::chrono::seconds kAwayTimeout{30};

std::string new_operation_id() {
  std::random_device source;
  return fmt::format("cli-{:08x}{:08x}{:08x}", source(), source(), source());
}

bool may_come_back(const Error& error) {
  return error.code == ErrorCode::kUnavailable || error.code == ErrorCode::kDeadlineExceeded;
}

/// Of asking for a change: an answer says that it is not made; silence does not.
Error unconfirmed(const Error& error, const std::string& id) {
  if (error.code != ErrorCode::kUnavailable && error.code != ErrorCode::kCancelled) return error;
  return fail(error.code, error.message + "; a coordinator that heard of the change (operation " +
                              id + ") makes it nevertheless, and `moiety status` shows it");
}

}  // namespace

Result<json::value> run_operation(const AdminClient& admin,
                                  const std::string& method,
                                  const std::string& path,
                                  const std::string& body,
                                  bool progress) {
  const std::string id = new_operation_id();
  const std::string change = path + "?wait=false&operation_id=" + id;
  auto asked = admin.call_patiently(method, change, body);
  if (!asked && asked.error().code != ErrorCode::kDeadlineExceeded)
    return unconfirmed(asked.error(), id);
  const std::string goes_on =
      "the change goes on in the coordinator (operation " + id + "); `moiety status` shows it";
  const Deadline deadline = Clock::now() + kTimeout;
  Deadline away_deadline = Clock::now() + kAwayTimeout;
  std::string doing = "no answer";
  Progress line(progress);
  for (;;) {
    if (interrupted()) return fail(ErrorCode::kCancelled, "interrupted; " + goes_on);
    if (Clock::now() > deadline) {
      return fail(ErrorCode::kDeadlineExceeded,
                  doing + " after " + std::to_string(kTimeout.count()) + " minutes; " + goes_on);
    }
    auto operation = admin.call("GET", "/v1/operations/" + id, "", kCallTimeout);
    // Killed before the change was written down: it is as if nobody had asked.
    if (!operation && operation.error().code == ErrorCode::kNotFound) {
      if (asked = admin.call(method, change, body); !asked && !may_come_back(asked.error()))
        return asked.error();
    } else if (operation) {
      away_deadline = Clock::now() + kAwayTimeout;
      const json::string& state = operation->at("state").as_string();
      if (state == "succeeded") return *operation;
      if (state == "failed") {
        const json::value& error = operation->at("error");
        return fail(error_code_from_name(std::string(error.at("code").as_string())),
                    std::string(error.at("message").as_string()));
      }
      std::string now = describe_operation(*operation);
      if (now != doing) line.update(now);
      doing = std::move(now);
    } else if (!may_come_back(operation.error()) || Clock::now() > away_deadline) {
      return with_context("operation " + id, operation.error());
    } else {
      line.update("the coordinator does not answer; waiting for it to come back");
    }
    std::this_thread::sleep_for(kPoll);
  }
}

}  // namespace moiety::cli
