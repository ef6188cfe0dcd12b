#pragma once

#include <boost/json/fwd.hpp>
#include <filesystem>
#include <memory>
#include <optional>
#include <string>
#include <string_view>

#include "common/result.h"

namespace moiety {

/// A checkpoint's chat template: the subset of Jinja2 that real chat templates use, rendered as
/// Hugging Face transformers renders it (README.md of this folder lists what is understood).
/// Immutable after parsing; any thread may render.
///
/// Templates are outside bytes. What is not supported is refused by parse() by name, with its line;
/// a render that nests too deeply, runs too long or writes too much ends with an error.
class ChatTemplate {
 public:
  /// From a template's text. kInvalidArgument: "line 3: unknown filter 'x'".
  static Result<ChatTemplate> parse(std::string_view source);

  /// Of a checkpoint: the text of chat_template.jinja, else of chat_template.json, else of
  /// tokenizer_config.json; the latter two hold one template or a list of {name, template}. `name`
  /// other than "default" (such as "tool_use") looks for additional_chat_templates/NAME.jinja and,
  /// where there is no chat_template.jinja, in such lists: in tokenizer_config.json only where
  /// chat_template.json has no default, so that a list never goes with another file's default that
  /// replaces it. nullopt: the checkpoint has none. The special tokens of tokenizer_config.json
  /// (bos_token, eos_token, ...) become variables of every render.
  static Result<std::optional<ChatTemplate>> load(const std::filesystem::path& checkpoint_folder,
                                                  std::string_view name = "default");

  /// The template in `file`, with the special tokens of a checkpoint that may have another or none.
  static Result<ChatTemplate> load_file(const std::filesystem::path& file,
                                        const std::filesystem::path& checkpoint_folder);

  ChatTemplate(const ChatTemplate&);
  ChatTemplate& operator=(const ChatTemplate&);
  ChatTemplate(ChatTemplate&&) noexcept;
  ChatTemplate& operator=(ChatTemplate&&) noexcept;
  ~ChatTemplate();

  /// The text for `variables` (messages, tools, add_generation_prompt, ...), which win over the
  /// checkpoint's special tokens. kInvalidArgument: the template refused the input
  /// (raise_exception) or failed on it, with line and reason; kResourceExhausted: it went beyond a
  /// limit.
  Result<std::string> render(const boost::json::object& variables) const;

 private:
  struct State;
  explicit ChatTemplate(std::shared_ptr<const State> state);
  /// Of a checkpoint whose tokenizer_config.json is `config`; `path` is where `source` came from.
  static Result<ChatTemplate> with_defaults(std::string_view source,
                                            const std::filesystem::path& path,
                                            const std::filesystem::path& checkpoint_folder,
                                            const boost::json::object& config);
  std::shared_ptr<const State> state_;
};

}  // namespace moiety
