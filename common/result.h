#pragma once

#include <boost/system/result.hpp>
#include <cstdint>
#include <string>
#include <string_view>
#include <utility>

namespace moiety {

/// What kind of expected failure happened. One table (error_info) maps a code to its wire name, its
/// HTTP status and whether the same call may succeed when it is made again.
enum class ErrorCode : std::uint8_t {
  kInvalidArgument,     ///< the caller's input is wrong: a flag, a field, a file's content
  kNotFound,            ///< no such file, deployment, model or worker
  kAlreadyExists,       ///< the name is taken
  kFailedPrecondition,  ///< the input is fine, the present state does not allow it
  kResourceExhausted,   ///< a queue, a memory budget or the fleet's capacity is full
  kUnavailable,         ///< a peer did not answer or is not ready yet
  kDeadlineExceeded,    ///< a wait ended without what it waited for
  kCancelled,           ///< the caller gave up
  kWorkerLost,          ///< experts that the request needs lived on a worker that is gone
  kStaleEpoch,          ///< a newer placement exists
  kLeaseLost,           ///< an epoch without us was published
  kDataLoss,            ///< a file or a message is damaged or truncated
  kIo,                  ///< the operating system refused (message carries errno's text)
  kInternal,            ///< a library failed in a way that should not happen
};

struct ErrorInfo {
  std::string_view name;  ///< snake_case, used on the wire and as `code` in HTTP error bodies
  int http_status;
  bool retryable;
};

/// The one table of error codes.
const ErrorInfo& error_info(ErrorCode code);

/// Finds a code by its wire name; kInternal for an unknown one (a newer peer's code).
ErrorCode error_code_from_name(std::string_view name);

/// An expected failure: a code for programs, a sentence for people that says what, where and what
/// to do.
struct Error {
  ErrorCode code = ErrorCode::kInternal;
  std::string message;
};

[[noreturn]] void throw_exception_from_error(const Error& error,
                                             const boost::source_location& where);

/// A value or an Error. Unlike a plain alias of boost::system::result it warns when it is ignored.
/// Reading the value of a failed result is a bug and aborts.
template <class T>
class [[nodiscard]] Result : public boost::system::result<T, Error> {
  using Base = boost::system::result<T, Error>;

 public:
  using Base::Base;
  Result(Error error)
      : Base(std::move(error)) {}  // NOLINT: implicit so that `return Error{...}` works
};

/// Builds an error; reads well at a return: `return fail(ErrorCode::kNotFound, "no such file: " +
/// path);`
inline Error fail(ErrorCode code, std::string message) { return Error{code, std::move(message)}; }

/// Adds where the failure happened in front of its message: "config.json: num_experts: ...".
inline Error with_context(std::string_view where, Error error) {
  error.message = std::string(where) + ": " + error.message;
  return error;
}

}  // namespace moiety

/// Returns the error of `expr` (a Result) from the enclosing function, if it has one.
#define MOIETY_TRY(expr)                                                  \
  do {                                                                    \
    if (auto moiety_try_result = (expr); !moiety_try_result) [[unlikely]] \
      return std::move(moiety_try_result).error();                        \
  } while (false)

#define MOIETY_CONCAT_INNER(a, b) a##b
#define MOIETY_CONCAT(a, b) MOIETY_CONCAT_INNER(a, b)

/// `MOIETY_ASSIGN(auto x, call());` gives x the value of a Result, or returns its error.
#define MOIETY_ASSIGN(lhs, expr) \
  MOIETY_ASSIGN_IMPL(MOIETY_CONCAT(moiety_result_, __LINE__), lhs, expr)
#define MOIETY_ASSIGN_IMPL(tmp, lhs, expr) \
  auto tmp = (expr);                       \
  if (!tmp) [[unlikely]]                   \
    return std::move(tmp).error();         \
  lhs = std::move(*tmp)
