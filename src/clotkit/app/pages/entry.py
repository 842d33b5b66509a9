"""The script that Streamlit runs for every visit; nothing happens when a child process imports it."""

if __name__ == "__main__":
    from clotkit.app.pages.navigation import main

    main()
