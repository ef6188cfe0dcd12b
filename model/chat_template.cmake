moiety_library(chat_template
  SOURCES chat_template.cc jinja_access.cc jinja_case.cc jinja_case_tables.cc jinja_compare.cc
          jinja_evaluate.cc jinja_expressions.cc jinja_filters.cc jinja_format.cc jinja_globals.cc
          jinja_interpreter.cc jinja_lexer.cc jinja_loop.cc jinja_methods.cc jinja_number_filters.cc
          jinja_operators.cc jinja_parse_number.cc jinja_parser.cc jinja_print.cc jinja_run.cc jinja_scopes.cc
          jinja_sequence_filters.cc jinja_split.cc jinja_string_methods.cc jinja_tests.cc
          jinja_text.cc jinja_value.cc
  LINK moiety_common Boost::json)
target_link_libraries(moiety_chat_template PRIVATE PkgConfig::UTF8PROC)

moiety_test(chat_template_test LABEL unit
  SOURCES "${PROJECT_SOURCE_DIR}/tests/model/chat_template_test.cc"
          "${PROJECT_SOURCE_DIR}/tests/model/jinja_test.cc"
  LINK moiety_chat_template)

# Compares with PyPI jinja2; tests/golden/template_test.py runs it.
if(BUILD_TESTING)
  add_executable(template_check "${PROJECT_SOURCE_DIR}/tests/golden/template_check.cc")
  target_link_libraries(template_check PRIVATE moiety_chat_template)
  set_target_properties(template_check PROPERTIES
    RUNTIME_OUTPUT_DIRECTORY "${PROJECT_BINARY_DIR}/tests")
endif()
