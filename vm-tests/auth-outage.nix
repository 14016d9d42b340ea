# While authd is down, sessions go on and logins get 421 within the promised time.
{
  script = ''
    wait_for_cluster()
    start_session("session", "hold")
    auth.succeed("systemctl stop authd.service")

    with subtest("a login gets 421 within the promised time"):
        talk = client.succeed(
            "{ sleep 3; printf 'USER demo\\r\\nPASS secret\\r\\n'; sleep 15; } | nc -w 30 lb 21"
        )
        assert "\n421 " in talk and "\n230 " not in talk, talk
        client.fail(f"timeout 30 {CURL} {URL}/")

    with subtest("the existing session works"):
        client.succeed("touch /tmp/session.go")
        result = answer_of("session")
        assert result["same"] and result["listed"], result

    with subtest("logins work again when authd is back"):
        auth.succeed("systemctl start authd.service")
        wait_for_login(timeout=60)

    with subtest("a wrong password is reported as such, not as an outage"):
        talk = client.succeed(
            "{ sleep 3; printf 'USER demo\\r\\nPASS wrong\\r\\n'; sleep 6; printf 'QUIT\\r\\n'; sleep 2; } | nc -w 30 lb 21"
        )
        assert "\n530 " in talk, talk
  '';
}
