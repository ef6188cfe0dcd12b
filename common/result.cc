#include "common/result.h"

#include <array>

#include "common/check.h"

namespace moiety {
namespace {

// Indexed by ErrorCode.
constexpr std::array<ErrorInfo, 14> kErrors = {{
    {"invalid_argument", 400, false},
    {"not_found", 404, false},
    {"already_exists", 409, false},
    {"failed_precondition", 409, false},
    {"resource_exhausted", 429, true},
    {"unavailable", 503, true},
    {"deadline_exceeded", 504, true},
    {"cancelled", 499, false},
    {"worker_lost", 503, true},
    {"stale_epoch", 409, true},
    {"lease_lost", 409, false},
    {"data_loss", 500, false},
    {"io_error", 500, true},
    {"internal_error", 500, false},
}};

}  // namespace

const ErrorInfo& error_info(ErrorCode code) { return kErrors.at(static_cast<std::size_t>(code)); }

ErrorCode error_code_from_name(std::string_view name) {
  for (std::size_t i = 0; i < kErrors.size(); ++i) {
    if (kErrors[i].name == name) return static_cast<ErrorCode>(i);
  }
  return ErrorCode::kInternal;
}

void throw_exception_from_error(const Error& error, const boost::source_location& where) {
  check_failed("reading the value of a failed Result: " + error.message, where.file_name(),
               static_cast<int>(where.line()));
}

}  // namespace moiety
